// Package bpfcache keeps compiled seccomp programs, so that the profile of an
// engine, which takes libseccomp 20 ms to compile, is compiled once and not for
// every container.
//
// libcontainer compiles in the container's first process, which no longer sees
// the host's files. So that process is given a ticket, a memfd among the files
// that it inherits: one that holds the program, or an empty one that it fills
// in. What it holds is libseccomp's own output, before libcontainer adds its
// part; the rest of libcontainer's code runs as ever.
//
// Programs lie in one folder, by the hash of what they were compiled from:
//
//	<dir>/<hash>    a checksum and the program, as struct sock_filter[] (seccomp(2))
package bpfcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	magic      = "vzrun-seccomp-1\n"
	headerSize = len(magic) + 8
	// instruction is the size of a struct sock_filter, maxProgram the most
	// that the kernel takes (BPF_MAXINSNS).
	instruction = 8
	maxProgram  = 4096 * instruction
	// maxFiles bounds the folder: engines have one profile, or a few.
	maxFiles = 32
)

// Cache is a folder of programs.
type Cache struct{ dir string }

// Open names the folder. Nothing is created until the first program is kept.
func Open(dir string) *Cache { return &Cache{dir: dir} }

// Ticket is what a process is given that is to load a program. It must be
// closed.
type Ticket struct {
	// File is to be the last of the files that the process inherits, see Adopt.
	File *os.File
	// Filled tells whether the program is known already.
	Filled bool
	path   string
}

// Ticket returns a ticket for the program that source is compiled to: source is
// all that decides about it.
func (c *Cache) Ticket(source []byte) (_ *Ticket, retErr error) {
	sum := sha256.Sum256(source)
	path := filepath.Join(c.dir, hex.EncodeToString(sum[:]))
	program, err := read(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("vzrun-seccomp", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	t := &Ticket{File: os.NewFile(uintptr(fd), "seccomp program"), Filled: len(program) > 0, path: path}
	defer func() {
		if retErr != nil {
			t.Close()
		}
	}()
	head := binary.NativeEndian.AppendUint64([]byte(magic), uint64(len(program)))
	if _, err := t.File.Write(append(head, program...)); err != nil {
		return nil, err
	}
	if t.Filled {
		return t, t.seal()
	}
	return t, nil
}

func (t *Ticket) seal() error {
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	_, err := unix.FcntlInt(t.File.Fd(), unix.F_ADD_SEALS, all)
	return os.NewSyscallError("fcntl", err)
}

// Keep stores what a process that is known to have loaded its program has
// filled in. It does nothing where that was known before, or is nothing.
func (t *Ticket) Keep() error {
	if t.Filled {
		return nil
	}
	// From here on nobody changes it.
	if err := t.seal(); err != nil {
		return err
	}
	data := make([]byte, headerSize+maxProgram+1)
	n, err := t.File.ReadAt(data, 0)
	if n < headerSize {
		return err
	}
	size := binary.NativeEndian.Uint64(data[len(magic):headerSize])
	program := data[headerSize:n]
	if size == 0 {
		return nil
	}
	if size != uint64(len(program)) || !valid(program) {
		return errors.New("malformed seccomp program")
	}
	return store(t.path, program)
}

// Close closes the ticket's file. It does nothing for nil.
func (t *Ticket) Close() {
	if t != nil {
		t.File.Close()
	}
}

func valid(program []byte) bool {
	return len(program) > 0 && len(program) <= maxProgram && len(program)%instruction == 0
}

// read returns a stored program, nil where there is none that is whole.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, sha256.Size+maxProgram+1)
	n, _ := f.ReadAt(data, 0) // what is not whole is compiled again
	if n < sha256.Size {
		return nil, nil
	}
	sum, program := data[:sha256.Size], data[sha256.Size:n]
	if is := sha256.Sum256(program); !valid(program) || !bytes.Equal(sum, is[:]) {
		return nil, nil
	}
	return program, nil
}

// store writes a program such that readers find all of it or nothing, and makes
// room for it. Two may do so at a time.
func store(path string, program []byte) (retErr error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := makeRoom(dir); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			os.Remove(tmp.Name())
		}
	}()
	sum := sha256.Sum256(program)
	if _, err := tmp.Write(append(sum[:], program...)); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// makeRoom removes the oldest files where there are too many, those that a
// killed store left among them.
func makeRoom(dir string) error {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if len(entries) < maxFiles {
			return nil
		}
		oldest, at := "", time.Time{}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				continue // somebody else removed it
			}
			if oldest == "" || info.ModTime().Before(at) {
				oldest, at = e.Name(), info.ModTime()
			}
		}
		if oldest == "" {
			return nil
		}
		if err := os.Remove(filepath.Join(dir, oldest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make room in %s: %w", dir, err)
		}
	}
}
