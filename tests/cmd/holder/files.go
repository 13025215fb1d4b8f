package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

func files() []thing {
	return []thing{
		{"lock-flock", lockFlock},
		{"lock-posix", lockPosix},
		{"lock-ofd", lockOFD},
		{"deleted", deleted},
		{"deleted-big", deletedBig},
		{"deleted-mapped", deletedMapped},
		{"tmpfile", tmpfile},
		{"terminal", terminal},
	}
}

// lockFlock and the others are seen by a process of its own, as whose locks they
// are matters.
func lockFlock(dir string) (func() error, error) {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, err
	}
	return func() error {
		return errors.Join(locked("flock", f.Name(), true), syscall.Flock(int(f.Fd()), syscall.LOCK_UN), locked("flock", f.Name(), false))
	}, nil
}

// Of fcntl.h: locks of open file descriptions.
const setOFDLock = 37

func lockPosix(dir string) (func() error, error) {
	return rangeLock(dir, "posix", syscall.F_SETLK)
}

func lockOFD(dir string) (func() error, error) { return rangeLock(dir, "ofd", setOFDLock) }

// rangeLock locks bytes 10 to 19.
func rangeLock(dir, kind string, command int) (func() error, error) {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return nil, err
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 10, Len: 10}
	if err := syscall.FcntlFlock(f.Fd(), command, &lock); err != nil {
		return nil, err
	}
	return func() error {
		if err := errors.Join(locked(kind, f.Name(), true), locked(kind+"-outside", f.Name(), false)); err != nil {
			return err
		}
		lock := syscall.Flock_t{Type: syscall.F_UNLCK, Start: 10, Len: 10}
		return errors.Join(syscall.FcntlFlock(f.Fd(), command, &lock), locked(kind, f.Name(), false))
	}, nil
}

// locked asks another process whether it gets the lock.
func locked(kind, path string, want bool) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := startChild("lock-"+kind, f)
	if err != nil {
		return err
	}
	answer, err := c.hear()
	return errors.Join(err, same(kind+" is taken", answer, fmt.Sprint(want)), c.end())
}

// tryLock is what the other process does.
func tryLock(kind string, f *os.File) string {
	var err error
	switch kind {
	case "flock":
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	case "posix", "ofd":
		err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Start: 15, Len: 1})
	default:
		err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Start: 20, Len: 1})
	}
	if err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EACCES) {
		return err.Error()
	}
	return fmt.Sprint(err != nil)
}

func deleted(dir string) (func() error, error) { return unlinked(dir, 100) }

// deletedBig is larger than what CRIU takes without being asked, 1 MiB.
func deletedBig(dir string) (func() error, error) { return unlinked(dir, 3<<20) }

func unlinked(dir string, size int) (func() error, error) {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i % 251)
	}
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	return func() error {
		if _, err := f.Write([]byte("more")); err != nil {
			return err
		}
		got := make([]byte, size+5)
		n, err := f.ReadAt(got, 0)
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("read: %w", err)
		}
		if err := errors.Join(same("size", n, size+4), same("contents", string(got[:size]), string(data))); err != nil {
			return err
		}
		left, err := os.ReadDir(dir)
		return errors.Join(err, same("names in the directory", len(left), 0))
	}, nil
}

func deletedMapped(dir string) (func() error, error) {
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, make([]byte, pageSize), 0o600); err != nil {
		return nil, err
	}
	memory, err := mapShared(path)
	if err != nil {
		return nil, err
	}
	copy(memory, "mapped")
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return func() error { return same("memory", string(memory[:6]), "mapped") }, nil
}

// oTmpfile of open(2): a file that never had a name.
const oTmpfile = 0o20000000 | syscall.O_DIRECTORY

func tmpfile(dir string) (func() error, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|oTmpfile, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString("nameless"); err != nil {
		return nil, err
	}
	return func() error {
		got := make([]byte, 8)
		_, err := f.ReadAt(got, 0)
		return errors.Join(err, same("contents", string(got), "nameless"))
	}, nil
}

// Of termios(3) and ioctl_tty(2).
type windowSize struct{ rows, columns, x, y uint16 }

func control(f *os.File, request uintptr, argument unsafe.Pointer) error {
	_, err := call(syscall.SYS_IOCTL, f.Fd(), request, uintptr(argument), 0, 0)
	return err
}

// terminal is a pair with a size and a mode.
func terminal(string) (func() error, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var number, zero int32
	if err := errors.Join(control(master, syscall.TIOCSPTLCK, unsafe.Pointer(&zero)), control(master, syscall.TIOCGPTN, unsafe.Pointer(&number))); err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	size := windowSize{rows: 33, columns: 101}
	var mode syscall.Termios
	if err := errors.Join(control(slave, syscall.TIOCSWINSZ, unsafe.Pointer(&size)), control(slave, syscall.TCGETS, unsafe.Pointer(&mode))); err != nil {
		return nil, err
	}
	mode.Lflag &^= syscall.ECHO
	if err := control(slave, syscall.TCSETS, unsafe.Pointer(&mode)); err != nil {
		return nil, err
	}
	return func() error {
		var now windowSize
		var after syscall.Termios
		if err := errors.Join(control(slave, syscall.TIOCGWINSZ, unsafe.Pointer(&now)), control(slave, syscall.TCGETS, unsafe.Pointer(&after))); err != nil {
			return err
		}
		if err := errors.Join(same("size", now, size), same("mode", after, mode)); err != nil {
			return err
		}
		if _, err := master.WriteString("typed\n"); err != nil {
			return err
		}
		buf := make([]byte, 100)
		n, err := slave.Read(buf)
		return errors.Join(err, same("line", string(buf[:n]), "typed\n"))
	}, nil
}
