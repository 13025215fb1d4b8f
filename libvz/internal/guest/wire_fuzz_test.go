package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// reply returns a whole message from a guest, as a systemd would send it.
func reply(kind byte, serial uint32, signature string, body []byte) []byte {
	w := wireWriter{b: []byte{'l', kind, 0, 1}}
	w.uint32(uint32(len(body)))
	w.uint32(9)
	w.uint32(0)
	w.align(8)
	w.b = append(w.b, fieldReplySerial)
	w.signature("u")
	w.uint32(serial)
	if kind == typeError {
		w.field(fieldErrorName, "s", "org.example.Error\x1b[2J")
	}
	w.field(fieldSignature, "g", signature)
	binary.LittleEndian.PutUint32(w.b[12:], uint32(len(w.b)-16))
	w.align(8)
	return append(w.b, body...)
}

// FuzzDecode reads any message: what is returned is part of it, and no read
// goes beyond it.
func FuzzDecode(f *testing.F) {
	f.Add(encodeCall(1, busPath, busIface, "Get", []any{"a", []string{"b", "c"}}))
	f.Add(reply(typeReturn, 1, "v", []byte("\x01s\x00\x00\x02\x00\x00\x00ab\x00")))
	f.Add(reply(typeError, 1, "", nil))
	f.Add([]byte("B\x04\x00\x01\xff\xff\xff\xff\x00\x00\x00\x07\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) >= 16 {
			if size, err := messageSize(raw); err == nil && (size < 16 || size > maxMessage) {
				t.Fatalf("a size of %d", size)
			}
		}
		m, err := decode(raw)
		if err != nil {
			if !errors.Is(err, errBus) {
				t.Fatal(err)
			}
			return
		}
		for _, text := range []string{m.iface, m.member, m.errorName, m.signature} {
			if !bytes.Contains(raw, []byte(text)) {
				t.Fatalf("%q is not in the message", text)
			}
		}
		for before := -1; !m.body.bad && m.body.pos != before; {
			before = m.body.pos
			m.body.uint32()
			_ = m.body.string()
			m.body.signature()
		}
		if m.body.pos > len(raw) {
			t.Fatalf("read to %d of %d", m.body.pos, len(raw))
		}
	})
}

// wireTap is a guest that says what it likes, whatever it is asked.
type wireTap struct {
	io.Reader
	asked int
}

func (w *wireTap) Write(b []byte) (int, error) {
	w.asked += len(b)
	return len(b), nil
}

// FuzzBus talks with a guest that says anything at all.
func FuzzBus(f *testing.F) {
	const ok = "OK 0123\r\n"
	state := reply(typeReturn, 1, "v", []byte("\x01s\x00\x00\x02\x00\x00\x00ab\x00"))
	units := reply(typeReturn, 2, "a(ssssssouso)", []byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte(ok + string(state) + string(units)))
	f.Add([]byte(ok + string(reply(typeError, 1, "s", nil))))
	f.Add([]byte("REJECTED EXTERNAL\r\n"))
	f.Add([]byte(strings.Repeat("x", maxLine+2)))
	f.Fuzz(func(t *testing.T, says []byte) {
		peer := &wireTap{Reader: bytes.NewReader(says)}
		b, err := newBus(peer)
		if err != nil {
			return
		}
		if text, err := b.property(busPath, busIface, "SystemState"); err == nil {
			checkPrintable(t, text)
		}
		listed, err := b.failedUnits()
		if len(listed) > maxFailed {
			t.Fatalf("%d units", len(listed))
		}
		if err == nil {
			for _, u := range listed {
				checkPrintable(t, u.name)
				checkPrintable(t, u.description)
			}
		}
		_ = b.waitFinished() // ends with the input
	})
}

// FuzzPrintable: nothing that a guest says reaches a terminal as a command.
func FuzzPrintable(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b]0;x\x07\u009b2J\u202e\xff\n")
	f.Add(strings.Repeat("ä", 300))
	f.Fuzz(func(t *testing.T, s string) { checkPrintable(t, printable(s)) })
}

func checkPrintable(t *testing.T, s string) {
	t.Helper()
	const most = 256
	if len(s) > most+utf8.UTFMax || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		t.Fatalf("not fit for a terminal: %q", s)
	}
}

// FuzzInit reads any file as an init: its header, and the name it has.
func FuzzInit(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00"), "/lib/systemd/systemd")
	f.Add([]byte("#!/bin/sh"), "/sbin/init")
	f.Add([]byte("\x7fELF\x01\x02"), "/..")
	f.Fuzz(func(t *testing.T, header []byte, target string) {
		err := checkExecutable(bytes.NewReader(header), "amd64")
		if again := checkExecutable(bytes.NewReader(header), "amd64"); (err == nil) != (again == nil) {
			t.Fatalf("once %v, once %v", err, again)
		}
		for _, has := range []marks{{}, {runit: true}, {inittab: true}, {busybox: true}} {
			switch got := classify(target, has); got {
			case Systemd, SysVInit, OpenRC, Runit, Busybox, Unknown:
			default:
				t.Fatalf("%q is %q", target, got)
			}
		}
	})
}

// FuzzSpec takes any options: what is accepted is a configuration that gives
// the guest no id of the host's root.
func FuzzSpec(f *testing.F) {
	f.Add("web", "/sbin/init", "", int64(1<<30), int64(0), 1.5, uint32(1<<20), uint32(0))
	f.Add("../x", "sbin/init", "zz", int64(-1), int64(1), math.Copysign(0, -1), uint32(0), uint32(1))
	f.Fuzz(func(t *testing.T, hostname, init, uuid string, ram, swap int64, cpus float64, base, size uint32) {
		s, err := Spec(SpecOptions{
			Rootfs: "rootfs", Hostname: hostname, Init: Systemd, InitPath: init, UUID: uuid,
			RAM: ram, Swap: swap, CPUs: cpus, IDBase: base, IDSize: size,
		})
		if err != nil {
			return
		}
		m := s.Linux.UIDMappings[0]
		if m.HostID == 0 || uint64(m.HostID)+uint64(m.Size) > 1<<32-1 || m.Size < minIDs {
			t.Fatalf("ids %+v", m)
		}
		if memory := s.Linux.Resources.Memory; memory != nil && (*memory.Limit < minRAM || memory.Swap != nil && *memory.Swap < *memory.Limit) {
			t.Fatalf("memory %+v", memory)
		}
		if cpu := s.Linux.Resources.CPU; cpu != nil && *cpu.Quota < 1000 {
			t.Fatalf("quota %d", *cpu.Quota)
		}
		for _, text := range append(s.Process.Args, s.Process.Env...) {
			if strings.ContainsRune(text[len("/"):], '\x00') && !strings.ContainsRune(init, '\x00') {
				t.Fatalf("%q", text)
			}
		}
	})
}
