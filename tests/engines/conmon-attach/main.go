// Command conmon-attach talks to a container through conmon's attach socket, as
// CRI-O does for `kubectl attach`.
//
//	conmon-attach SOCKET
//
// It sends its stdin to the container and prints what the container writes, to
// stdout or stderr as the container did. It ends with the container. As nothing
// but the standard library is used, it builds without the module's dependencies.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

// The first byte of each packet says where the rest was written to.
const (
	toStdout = 2
	toStderr = 3
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: conmon-attach SOCKET")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "conmon-attach:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("attached")
	go func() {
		if _, err := io.Copy(conn, os.Stdin); err == nil {
			conn.CloseWrite() //nolint:errcheck // the container may be gone
		}
	}()
	packet := make([]byte, 64<<10)
	for {
		n, err := conn.Read(packet)
		if err != nil || n == 0 { // no packet is empty: conmon has closed
			return nil
		}
		out := os.Stdout
		switch packet[0] {
		case toStdout:
		case toStderr:
			out = os.Stderr
		default:
			return fmt.Errorf("packet for stream %d", packet[0])
		}
		if _, err := out.Write(packet[1:n]); err != nil {
			return err
		}
	}
}
