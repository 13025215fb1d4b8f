// Command mover is what contrib/bench/migrate moves and compares with, and what
// contrib/bench/checkpoint needs for bare CRIU.
//
//	mover hold MIB RATE LOG    fill memory, then write RATE MiB a second all over
//	                           it; each 100 ms a line in LOG: the time in
//	                           milliseconds and the KiB that were written
//	mover take PLACE           read what is sent to a unix socket or tls://HOST:PORT, once
//	mover keep PLACE MIB       likewise, so much of it, into memory that is new
//	mover touch MIB            fill memory, and give it back: a hypervisor that had
//	                           taken it away has given it again
//	mover send PLACE MIB       send that much, and wait until it has arrived
//	mover give MIB             write that much to stdout
//	mover idmap NS DIR PLACE   mount DIR at PLACE with the owners of a user namespace
package main

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strconv"
	"strings"
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
	case len(args) == 2 && args[0] == "give":
		mib, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return give(os.Stdout, int64(mib)<<20)
	case len(args) == 4 && args[0] == "idmap":
		return idmap(args[1], args[2], args[3])
	}
	return errors.New("usage: mover hold MIB RATE LOG | take PLACE | keep PLACE MIB | send PLACE MIB | give MIB | touch MIB | idmap NS DIR PLACE")
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
func take(place string, read func(net.Conn) error) error {
	l, err := listen(place)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("listening")
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

func listen(place string) (net.Listener, error) {
	address, secret := strings.CutPrefix(place, "tls://")
	if !secret {
		return net.Listen("unix", place)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		return nil, err
	}
	return tls.Listen("tcp", address, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}},
	})
}

func dial(place string) (net.Conn, error) {
	if address, secret := strings.CutPrefix(place, "tls://"); secret {
		// Whose certificate it is makes no difference to the time.
		return tls.Dial("tcp", address, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) //nolint:gosec // see above
	}
	return net.Dial("unix", place)
}

func send(place string, size int64) error {
	conn, err := dial(place)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := give(conn, size); err != nil {
		return err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

// give writes a megabyte again and again.
func give(w io.Writer, size int64) error {
	buffer := make([]byte, 1<<20)
	fill(buffer)
	for ; size > 0; size -= int64(len(buffer)) {
		if _, err := w.Write(buffer[:min(size, int64(len(buffer)))]); err != nil {
			return err
		}
	}
	return nil
}

// idmap is `mount --bind --options X-mount.idmap=NS DIR PLACE` of a newer util-linux
// than Debian 12's.
func idmap(ns, dir, place string) error {
	userns, err := os.Open(ns)
	if err != nil {
		return err
	}
	defer userns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", dir, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr %s: %w", dir, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", place, err)
	}
	return nil
}
