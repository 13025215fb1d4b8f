// inflight has a TCP connection that nobody accepts or, told "message", credentials on
// their way through a unix socket until it gets SIGUSR1; and waits for its end.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	arrive := make(chan os.Signal, 1)
	signal.Notify(arrive, syscall.SIGUSR1)
	err := error(nil)
	if len(os.Args) > 1 && os.Args[1] == "message" {
		err = post(arrive)
	} else {
		err = connect()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inflight:", err)
		os.Exit(1)
	}
	if err := os.WriteFile("/ready", nil, 0o644); err != nil {
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
}

func connect() error {
	here := &syscall.SockaddrInet4{Port: 7, Addr: [4]byte{127, 0, 0, 1}}
	server, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := syscall.Bind(server, here); err != nil {
		return err
	}
	if err := syscall.Listen(server, 1); err != nil {
		return err
	}
	client, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return syscall.Connect(client, here)
}

// post sends credentials that are received at a signal.
func post(arrive <-chan os.Signal) error {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	go func() {
		<-arrive
		message := make([]byte, 100)
		if _, _, _, _, err := syscall.Recvmsg(pair[1], message, message, 0); err == nil {
			os.WriteFile("/arrived", nil, 0o644) //nolint:errcheck // it is waited for
		}
	}()
	if err := syscall.SetsockoptInt(pair[1], syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1); err != nil {
		return err
	}
	mine := &syscall.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	return syscall.Sendmsg(pair[0], []byte("x"), syscall.UnixCredentials(mine), nil, 0)
}
