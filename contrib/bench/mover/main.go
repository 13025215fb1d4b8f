// Command mover is what contrib/bench/migrate moves and compares with.
//
//	mover hold MIB RATE LOG    fill memory, then write RATE MiB a second all over
//	                           it; each 100 ms a line in LOG: the time in
//	                           milliseconds and the KiB that were written
//	mover take SOCKET          read what is sent to a unix socket, once
//	mover keep SOCKET MIB      likewise, so much of it, into memory that is new
//	mover touch MIB            fill memory, and give it back: a hypervisor that had
//	                           taken it away has given it again
//	mover send SOCKET MIB      send that much, and wait until it has arrived
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	page  = 4096
	tick  = 10 * time.Millisecond
	ticks = 10 // to a line
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mover:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "hold":
		mib, err := strconv.Atoi(args[1])
		rate, err2 := strconv.Atoi(args[2])
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		return hold(mib, rate, args[3])
	case len(args) == 2 && args[0] == "take":
		return take(args[1], func(conn net.Conn) error {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{conn})
			return err
		})
	case len(args) == 3 && args[0] == "keep":
		mib, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		mem, err := room(mib)
		if err != nil {
			return err
		}
		return take(args[1], func(conn net.Conn) error {
			_, err := io.ReadFull(conn, mem)
			return err
		})
	case len(args) == 2 && args[0] == "touch":
		mib, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		mem, err := room(mib)
		if err != nil {
			return err
		}
		for i := 0; i < len(mem); i += page {
			mem[i] = 1
		}
		return nil
	case len(args) == 3 && args[0] == "send":
		mib, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return send(args[1], int64(mib)<<20)
	}
	return errors.New("usage: mover hold MIB RATE LOG | take SOCKET | keep SOCKET MIB | send SOCKET MIB | touch MIB")
}

// hold writes in ticks, and never catches up on those that it missed: what a
// line has less than it should is what the guest was held up.
func hold(mib, rate int, path string) error {
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	mem, err := room(mib)
	if err != nil {
		return err
	}
	fill(mem)
	pages := rate << 20 / page * int(tick/time.Millisecond) / 1000
	next := 0
	for {
		written := 0
		for range ticks {
			began := time.Now()
			for range pages {
				mem[next]++
				next = (next + page) % len(mem)
			}
			written += pages * page / 1024
			time.Sleep(tick - time.Since(began))
		}
		if _, err := fmt.Fprintln(log, time.Now().UnixMilli(), written); err != nil {
			return err
		}
	}
}

// room is memory that nobody has touched.
func room(mib int) ([]byte, error) {
	return unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// fill makes pages that neither compress to nothing nor are all alike.
func fill(mem []byte) {
	x := uint64(88172645463325252)
	for i := 0; i < len(mem); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for n := range 8 {
			mem[i+n] = byte(x >> (8 * n))
		}
	}
}

// take takes one connection, and says when all has been read.
func take(path string, read func(net.Conn) error) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := read(conn); err != nil {
		return err
	}
	_, err = conn.Write([]byte{1})
	return err
}

func send(path string, size int64) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	buffer := make([]byte, 1<<20)
	fill(buffer)
	for ; size > 0; size -= int64(len(buffer)) {
		if _, err := conn.Write(buffer[:min(size, int64(len(buffer)))]); err != nil {
			return err
		}
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
