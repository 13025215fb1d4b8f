package criu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func getPages(address, count uint64) pageMessage {
	var m pageMessage
	binary.NativeEndian.PutUint32(m[:], psGet)
	binary.NativeEndian.PutUint64(m[8:], count)
	binary.NativeEndian.PutUint64(m[16:], address)
	return m
}

// contents is what the pages at an address hold: where they are.
func contents(address, count uint64) []byte {
	var all []byte
	for range count {
		all = append(all, bytes.Repeat(binary.NativeEndian.AppendUint64(nil, address), os.Getpagesize()/8)...)
		address += uint64(os.Getpagesize())
	}
	return all
}

// answerTo is what CRIU's page server says: it gives no more than most pages.
func answerTo(request pageMessage, most uint64) []byte {
	const psAdd = 6
	n := min(request.count(), most)
	binary.NativeEndian.PutUint32(request[:], psAdd|1<<16)
	binary.NativeEndian.PutUint64(request[8:], n)
	return append(request[:], contents(request.address(), n)...)
}

func deadline(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

// sockets is a pair of connections as the real ones: with buffers, and an end.
func sockets(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// Wherever a connection ends, criu gets each answer once, whole and in order.
func TestRelayOverConnectionsThatEnd(t *testing.T) {
	requests := []pageMessage{getPages(0x1000, 1), getPages(0x20000, 8), getPages(0x3000, 1), getPages(0x400000, 30)}
	var want []byte
	for _, q := range requests {
		want = append(want, answerTo(q, 16)...)
	}
	for _, ends := range [][]int{{0}, {10}, {32, 4}, {40, 5000}, {4128, 4128 + 32 + 7, 60, 100000}, {1 << 20}} {
		ours, criu := sockets(t)
		deadline(t, criu)
		links, pages := 0, uint64(0)
		relay := newPageRelay(ours, func(context.Context) (net.Conn, error) {
			here, there := sockets(t)
			deadline(t, there)
			bytes := 1 << 30
			if links < len(ends) {
				bytes = ends[links]
			}
			links++
			go serveBytes(there, bytes)
			return here, nil
		}, func(_, _, count uint64) { pages += count })
		ended := make(chan error, 1)
		go func() { ended <- relay.run(context.Background()) }()
		for _, q := range requests {
			if _, err := criu.Write(q[:]); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(criu, got); err != nil {
			t.Fatalf("ends %v: %v", ends, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("ends %v: criu got something else", ends)
		}
		if _, err := criu.Write(request(psClose)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(criu, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("ends %v: %v", ends, err)
		}
		relay.farewell(psClose)
		if pages != 1+8+1+16 {
			t.Errorf("ends %v: told of %d pages", ends, pages)
		}
	}
}

// serveBytes answers requests, and hangs up after so many bytes.
func serveBytes(conn net.Conn, left int) {
	defer conn.Close()
	for {
		var q pageMessage
		if _, err := io.ReadFull(conn, q[:]); err != nil {
			return
		}
		if q.command() != psGet {
			conn.Write(make([]byte, 4)) //nolint:errcheck // the reader tells
			return
		}
		answer := answerTo(q, 16)
		n := min(len(answer), left)
		left -= n
		if _, err := conn.Write(answer[:n]); err != nil || left == 0 {
			return
		}
	}
}

// taskPages plays CRIU with one task: it asks for pages that it lacks, by their
// addresses and now and then for one that the task waits for, and for what was missing
// in an answer again.
type taskPages struct {
	t       *testing.T
	conn    net.Conn
	task    uint64
	missing []uint64 // numbers of pages, in order
	random  *rand.Rand
}

func (p *taskPages) fillIn() {
	for len(p.missing) > 0 {
		first, count := 0, 1
		if p.random.IntN(5) == 0 {
			first = p.random.IntN(len(p.missing))
		} else {
			for most := 2 + p.random.IntN(900); count < min(len(p.missing), most) && p.missing[count] == p.missing[0]+uint64(count); {
				count++
			}
		}
		address := p.missing[first] * pageSize
		q := getPages(address, uint64(count))
		binary.NativeEndian.PutUint64(q[24:], p.task)
		if _, err := p.conn.Write(q[:]); err != nil {
			p.t.Fatal(err)
		}
		var head pageMessage
		if _, err := io.ReadFull(p.conn, head[:]); err != nil {
			p.t.Fatal(err)
		}
		got := int(head.count())
		if head.task() != p.task || head.address() != address || got < 1 || got > count {
			p.t.Fatalf("asked for %d pages at %x of %d, got %d at %x of %d", count, address, p.task, got, head.address(), head.task())
		}
		pages := make([]byte, head.bytes())
		if _, err := io.ReadFull(p.conn, pages); err != nil {
			p.t.Fatal(err)
		}
		if !bytes.Equal(pages, contents(address, uint64(got))) {
			p.t.Fatalf("other pages than those at %x", address)
		}
		p.missing = slices.Delete(p.missing, first, first+got)
	}
}

// Whatever is asked for before CRIU does, and wherever connections end, all pages are
// right, and no more is kept or under way than there may be.
func TestRelayAsksAhead(t *testing.T) {
	for seed := range uint64(6) {
		random := rand.New(rand.NewPCG(seed, 1))
		ours, criu := sockets(t)
		deadline(t, criu)
		const task, pages = 7, 5000
		var held int64
		cuts := rand.New(rand.NewPCG(seed, 2))
		relay := newPageRelay(ours, func(context.Context) (net.Conn, error) {
			here, there := sockets(t)
			deadline(t, there)
			left := 1 << 30
			if seed%2 == 1 {
				left = cuts.IntN(8 << 20)
			}
			go serveBytes(there, left)
			return here, nil
		}, func(_, _, count uint64) { held += int64(count) })
		p := &taskPages{t: t, conn: criu, task: task, random: random}
		var ranges []pageRange
		for at := uint64(16); len(p.missing) < pages; at += 1 + random.Uint64N(3) {
			r := pagesAt(at, 1+random.IntN(2000))
			ranges = append(ranges, r)
			for range r.pages {
				p.missing = append(p.missing, at)
				at++
			}
		}
		total := len(p.missing)
		if seed%3 != 2 {
			relay.expect(task, ranges) // if not, it asks when CRIU does
		}
		ended := make(chan error, 1)
		go func() { ended <- relay.run(context.Background()) }()
		p.fillIn()
		relay.mu.Lock()
		for how, size := range relay.spool.sizes {
			if size > spoolMost+windowMost {
				t.Errorf("%d bytes are kept for reason %d", size, how)
			}
		}
		relay.mu.Unlock()
		relay.forget(task)
		if _, err := criu.Write(request(psClose)); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		relay.farewell(psClose)
		if held != int64(total) {
			t.Errorf("told of %d pages of %d", held, total)
		}
	}
}

func TestRelayGivesUp(t *testing.T) {
	noMore := errors.New("no more")
	for _, c := range []struct {
		name string
		says []byte
		want error
	}{
		{"no connection", nil, noMore},
		{"an answer to nothing", answerTo(getPages(0x9000, 1), 1), errForeignPages},
		{"too many pages", answerTo(getPages(0x1000, 2), 2), errForeignPages},
		{"no pages", answerTo(getPages(0x1000, 0), 0), errForeignPages},
	} {
		ours, criu := sockets(t)
		relay := newPageRelay(ours, func(context.Context) (net.Conn, error) {
			if c.says == nil {
				return nil, noMore
			}
			here, there := sockets(t)
			deadline(t, there)
			_, err := there.Write(c.says)
			return here, err
		}, func(_, _, _ uint64) {})
		ended := make(chan error, 1)
		go func() { ended <- relay.run(context.Background()) }()
		q := getPages(0x1000, 1)
		if _, err := criu.Write(q[:]); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: it goes on", c.name)
		}
	}
}

// The page server's answers are read whole, whether or not anybody has them: the
// next one who asks gets what it asked for.
func TestPageServerAfterALostPeer(t *testing.T) {
	l, err := (&DumpOptions{}).prepareLazy()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	criu, err := net.FileConn(l.theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer criu.Close()
	first, there := sockets(t)
	deadline(t, criu, there)
	served := make(chan error, 1)
	go func() { served <- l.server.Serve(context.Background(), first) }()
	lost := getPages(0x5000, 600)
	if _, err := there.Write(append(lost[:], lost[:]...)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := io.ReadFull(criu, make([]byte, len(lost))); err != nil {
			t.Fatal(err)
		}
	}
	there.Close()
	if err := <-served; !errors.Is(err, ErrPeerGone) {
		t.Fatal(err)
	}
	go func() {
		for range 2 {
			criu.Write(answerTo(lost, 600)) //nolint:errcheck // the reader tells
		}
		var q pageMessage
		io.ReadFull(criu, q[:])      //nolint:errcheck // likewise
		criu.Write(answerTo(q, 600)) //nolint:errcheck // likewise
	}()
	second, there := sockets(t)
	deadline(t, there)
	go func() { served <- l.server.Serve(context.Background(), second) }()
	q := getPages(0x7000, 3)
	if _, err := there.Write(q[:]); err != nil {
		t.Fatal(err)
	}
	want := answerTo(q, 3)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(there, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, or another answer", err)
	}
	if _, err := there.Write(request(psClose)); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
