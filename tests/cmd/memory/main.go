// memory MIB LOG [CHANGED] fills memory, and then verifies all of it and changes part
// of it, of the first CHANGED MiB if that is given, in rounds: a line in LOG for each, or the end with 3 at the first page that is
// not as it was left. What a restore loses or takes from elsewhere shows here. Some pages
// may not be read (PROT_NONE): who takes the memory has to do so from within.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

const (
	page      = 4096
	shutPages = 2
	gap       = 50 * time.Millisecond
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(3)
	}
}

func run() error {
	if len(os.Args) != 3 && len(os.Args) != 4 {
		return fmt.Errorf("usage: memory MIB LOG [CHANGED]")
	}
	mib, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	changed := mib
	if len(os.Args) == 4 {
		if changed, err = strconv.Atoi(os.Args[3]); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(os.Args[2], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	mem, err := syscall.Mmap(-1, 0, mib<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	rounds := make([]uint64, len(mem)/page) // in which each page was written last
	for i := range rounds {
		fill(mem, i, 0)
	}
	shut, err := syscall.Mmap(-1, 0, shutPages*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	for i := range shutPages {
		fill(shut, i, 0)
	}
	if err := syscall.Mprotect(shut, syscall.PROT_NONE); err != nil {
		return err
	}
	for round := uint64(1); ; round++ {
		if _, err := fmt.Fprintf(log, "%d\n", round); err != nil {
			return err
		}
		time.Sleep(gap)
		if err := look(shut); err != nil {
			fmt.Fprintf(log, "bad in round %d: %v\n", round, err)
			return err
		}
		for i, written := range rounds {
			if !holds(mem, i, written) {
				fmt.Fprintf(log, "bad page %d in round %d\n", i, round)
				return fmt.Errorf("page %d is not of round %d", i, written)
			}
			if i < changed<<20/page && uint64(i)%7 == round%7 {
				rounds[i] = round
				fill(mem, i, round)
			}
		}
	}
}

// look verifies pages that may not be read but for that moment, one after the other: so
// there is always one that may not be.
func look(shut []byte) error {
	for i := range shutPages {
		one := shut[i*page:][:page]
		if err := syscall.Mprotect(one, syscall.PROT_READ); err != nil {
			return err
		}
		if !holds(shut, i, 0) {
			return fmt.Errorf("page %d of those that may not be read", i)
		}
		if err := syscall.Mprotect(one, syscall.PROT_NONE); err != nil {
			return err
		}
	}
	return nil
}

func fill(mem []byte, i int, round uint64) {
	for at := i * page; at < (i+1)*page; at += 512 {
		binary.NativeEndian.PutUint64(mem[at:], uint64(i))
		binary.NativeEndian.PutUint64(mem[at+8:], ^round)
	}
}

func holds(mem []byte, i int, round uint64) bool {
	for at := i * page; at < (i+1)*page; at += 512 {
		if binary.NativeEndian.Uint64(mem[at:]) != uint64(i) || binary.NativeEndian.Uint64(mem[at+8:]) != ^round {
			return false
		}
	}
	return true
}
