package bpfcache

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// fill does what a process that has compiled its program does.
func fill(t *testing.T, ticket *Ticket, program []byte) {
	t.Helper()
	head := append([]byte(magic), byte(len(program)), byte(len(program)>>8), 0, 0, 0, 0, 0, 0)
	if _, err := ticket.File.WriteAt(append(head, program...), 0); err != nil {
		t.Fatal(err)
	}
}

func TestTicket(t *testing.T) {
	c := Open(filepath.Join(t.TempDir(), "cache"))
	program := bytes.Repeat([]byte("12345678"), 40)
	empty, err := c.Ticket([]byte("a"))
	if err != nil || empty.Filled {
		t.Fatalf("%+v, %v", empty, err)
	}
	// Nobody filled it in: there is nothing to keep.
	if err := empty.Keep(); err != nil {
		t.Fatal(err)
	}
	empty.Close()

	ticket, err := c.Ticket([]byte("a"))
	if err != nil || ticket.Filled {
		t.Fatalf("%+v, %v", ticket, err)
	}
	fill(t, ticket, program)
	if err := ticket.Keep(); err != nil {
		t.Fatal(err)
	}
	if _, err := ticket.File.WriteAt([]byte("x"), 0); err == nil {
		t.Fatal("a ticket can be changed after it was kept")
	}
	ticket.Close()

	for source, filled := range map[string]bool{"a": true, "b": false} {
		next, err := c.Ticket([]byte(source))
		if err != nil || next.Filled != filled {
			t.Fatalf("%s: %+v, %v", source, next, err)
		}
		if _, err := next.File.WriteAt([]byte("x"), 0); filled && err == nil {
			t.Fatal("a filled ticket can be changed")
		}
		next.Close()
	}
	var none *Ticket
	none.Close()
}

func TestKeepRefusesWhatIsNoProgram(t *testing.T) {
	for name, change := range map[string]func(*Ticket){
		"odd size":   func(k *Ticket) { fill(t, k, []byte("12345")) },
		"wrong size": func(k *Ticket) { fill(t, k, make([]byte, 16)); k.File.WriteAt([]byte("x"), 60) }, //nolint:errcheck // seen below
		"too long":   func(k *Ticket) { fill(t, k, make([]byte, maxProgram+8)) },
	} {
		c := Open(t.TempDir())
		ticket, err := c.Ticket([]byte(name))
		if err != nil {
			t.Fatal(err)
		}
		change(ticket)
		if err := ticket.Keep(); err == nil {
			t.Errorf("%s is kept", name)
		}
		ticket.Close()
		if entries, _ := os.ReadDir(c.dir); len(entries) != 0 {
			t.Errorf("%s leaves %v", name, entries)
		}
	}
}

func TestFolderIsBounded(t *testing.T) {
	c := Open(t.TempDir())
	for i := range 3 * maxFiles {
		ticket, err := c.Ticket(fmt.Append(nil, i))
		if err != nil {
			t.Fatal(err)
		}
		fill(t, ticket, []byte("12345678"))
		if err := ticket.Keep(); err != nil {
			t.Fatal(err)
		}
		ticket.Close()
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != maxFiles {
		t.Fatalf("%d files, %v", len(entries), err)
	}
}
