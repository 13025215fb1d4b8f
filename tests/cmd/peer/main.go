// Command peer is the other end of what containers are given in the tests.
//
//	peer notify SOCKET         sd_notify(3)'s listener: prints each message on a line, "|" for newlines
//	peer say MESSAGE           tells $NOTIFY_SOCKET; \n in MESSAGE is a newline
//	peer seccomp SOCKET [DIR]  seccomp's agent (SCMP_ACT_NOTIFY): refuses with ENOMEDIUM,
//	                           except for calls on paths below DIR
//	peer memory MIB            touches so much memory, and says so
//
// Listeners print "listening" once the socket is there. As nothing but the
// standard library is used, it builds without the module's dependencies, and
// runs in any root file system.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	modes := map[string]func(args []string) error{"notify": notify, "say": say, "seccomp": agent, "memory": memory}
	if len(os.Args) < 3 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peer notify|say|seccomp|memory ARG")
		os.Exit(2)
	}
	if err := modes[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

// notify closes what descriptors it gets, which is the answer to BARRIER=1.
func notify(args []string) error {
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: args[0], Net: "unixgram"})
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		data, rights := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
		n, used, _, _, err := socket.ReadMsgUnix(data, rights)
		if err != nil {
			return err
		}
		fmt.Println(strings.ReplaceAll(strings.TrimRight(string(data[:n]), "\n"), "\n", "|"))
		fds, err := descriptors(rights[:used])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			syscall.Close(fd) //nolint:errcheck // it is read-only
		}
	}
}

func say(args []string) error {
	host := os.Getenv("NOTIFY_SOCKET")
	if host == "" {
		return fmt.Errorf("no $NOTIFY_SOCKET")
	}
	socket, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: host, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = socket.Write([]byte(strings.ReplaceAll(args[0], `\n`, "\n")))
	return err
}

func memory(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	block := make([]byte, size<<20)
	for i := 0; i < len(block); i += os.Getpagesize() {
		block[i] = 1
	}
	fmt.Println("touched", len(block)>>20)
	return nil
}

// descriptors returns those that came with a message.
func descriptors(control []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		all = append(all, fds...)
	}
	return all, nil
}
