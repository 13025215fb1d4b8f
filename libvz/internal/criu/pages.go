package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Commands of the page server's protocol, the lower half of the first word, and
// one that is ours. CRIU does not know it, and fails as it should.
const (
	psGet        = 7
	psClose      = 0x1023
	psForceClose = 0x1024
	psGivenUp    = 0x7a77
)

// pageMessage is CRIU's struct page_server_iov: a request, or what comes before the
// pages of an answer. There is one answer to each request, in the same order, with
// at most the pages that were asked for.
type pageMessage [32]byte

func (m *pageMessage) command() uint32 { return binary.NativeEndian.Uint32(m[:]) & 0xffff }
func (m *pageMessage) count() uint64   { return binary.NativeEndian.Uint64(m[8:]) }
func (m *pageMessage) address() uint64 { return binary.NativeEndian.Uint64(m[16:]) }
func (m *pageMessage) task() uint64    { return binary.NativeEndian.Uint64(m[24:]) }

// maxPages bounds what is believed of a message: CRIU asks for 4 MiB at most.
const maxPages = 1 << 20

// bytes is how much memory comes after an answer's head.
func (m *pageMessage) bytes() int64 {
	return int64(min(m.count(), maxPages)) * int64(os.Getpagesize())
}

// errForeignPages says that a page server answered something else than it was
// asked.
var errForeignPages = errors.New("the page server sent what it was not asked for")

// mostAhead bounds how many requests are under way that CRIU has not made.
const mostAhead = 32

// pageRelay moves the requests of a `criu lazy-pages` to a page server, and pages
// back. CRIU asks for one thing at a time; the relay asks for what CRIU will ask for
// next, keeps that in a spool, and answers from there.
//
// A connection may end at any moment and another one follow: an answer counts only
// when it is whole, and what has none is asked again, so that CRIU notices nothing but
// time that goes by.
type pageRelay struct {
	criu net.Conn
	// dial is called when the first page is asked for, and each time that a
	// connection has ended.
	dial func(context.Context) (net.Conn, error)
	// arrived is told of pages before they are handed on: whose, where, how many.
	arrived func(pid, address, count uint64)

	mu     sync.Mutex
	change *sync.Cond    // of wants, spool, over
	wants  []pageMessage // CRIU's requests that have no answer, in order
	asked  []asking      // ours, likewise
	ahead  ahead
	pace   pace
	spool  spool
	peer   net.Conn      // nil: there is no connection
	tried  bool          // dial has been called
	over   bool          // CRIU says no more
	done   chan struct{} // closed when the relay ends, after which nobody else uses peer
}

// asking is a request to the page server.
type asking struct {
	span
	how   reason
	since time.Time
}

func (a *asking) has(task, address uint64) bool {
	return a.task == task && address >= a.address && address-a.address < uint64(a.count*os.Getpagesize())
}

func (a *asking) message() pageMessage {
	var m pageMessage
	binary.NativeEndian.PutUint32(m[:], psGet)
	binary.NativeEndian.PutUint64(m[8:], uint64(a.count))
	binary.NativeEndian.PutUint64(m[16:], a.address)
	binary.NativeEndian.PutUint64(m[24:], a.task)
	return m
}

func newPageRelay(criu net.Conn, dial func(context.Context) (net.Conn, error), arrived func(pid, address, count uint64)) *pageRelay {
	r := &pageRelay{criu: criu, dial: dial, arrived: arrived, done: make(chan struct{})}
	r.change = sync.NewCond(&r.mu)
	return r
}

// expect tells of pages of a task that have to come.
func (r *pageRelay) expect(task uint64, ranges []pageRange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead.expect(task, ranges)
}

// forget tells that a task needs no more pages.
func (r *pageRelay) forget(task uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead.forget(task)
	r.spool.forget(task)
	r.fill()
}

// run returns when CRIU says no more, or ctx ends, which should be when CRIU has
// ended; what CRIU says at its end is kept back, as it says it after a failure,
// too. An error is why no more pages come.
func (r *pageRelay) run(ctx context.Context) error {
	defer close(r.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { r.criu.Close() })
	defer stop()
	var both sync.WaitGroup
	var strange, lost error
	begun := false
	for {
		var request pageMessage
		if _, err := io.ReadFull(r.criu, request[:]); err != nil {
			break
		}
		if request.command() != psGet {
			r.criu.Write(make([]byte, 4)) //nolint:errcheck // it waits for a status
			break
		}
		if request.count() == 0 || request.count() > maxPages {
			strange = fmt.Errorf("criu asked for %d pages", request.count())
			break
		}
		r.want(request)
		if !begun {
			begun = true
			both.Go(r.answer)
			both.Go(func() {
				if lost = r.fetch(ctx); lost != nil {
					cancel() // nothing more can be asked
				}
			})
		}
	}
	r.finish()
	cancel() // a dial; connections have been told
	both.Wait()
	return errors.Join(lost, strange)
}

// want notes a request of CRIU, and sees to it that there will be an answer.
func (r *pageRelay) want(request pageMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wants = append(r.wants, request)
	if request.count() == 1 {
		r.ahead.fault(request.task(), request.address())
	}
	r.see(request)
	r.fill()
	r.change.Broadcast()
}

// see makes a request of CRIU where its first page is neither here nor under way.
func (r *pageRelay) see(want pageMessage) {
	task, address := want.task(), want.address()
	has := func(a asking) bool { return a.has(task, address) }
	if r.spool.has(task, address) || slices.ContainsFunc(r.asked, has) {
		return
	}
	s := span{task, address, int(want.count())}
	// No more than what nobody has asked for: it is answered sooner, and the rest then.
	s.count = r.ahead.begin(s, r.pieceMost())
	r.ask(asking{span: s})
}

// fill makes requests before CRIU does, as far as there is room.
func (r *pageRelay) fill() {
	if r.peer == nil || r.over {
		return
	}
	var sizes [reasons]int // in bytes, under way
	count := 0
	for i := range r.asked {
		sizes[r.asked[i].how] += r.asked[i].count * os.Getpagesize()
		if r.asked[i].how != wanted {
			count++
		}
	}
	for ; sizes[near]+sizes[inTurn] < r.pace.window && count < mostAhead; count++ {
		most := r.pieceMost()
		s, ok, how := span{}, false, near
		if r.spool.sizes[near]+sizes[near] < spoolMost {
			s, ok = r.ahead.pickNear(most)
		}
		if !ok && r.spool.sizes[inTurn]+sizes[inTurn] < spoolMost {
			how = inTurn
			s, ok = r.ahead.pick(most)
		}
		if !ok {
			return
		}
		r.ask(asking{span: s, how: how})
		sizes[how] += s.count * os.Getpagesize()
	}
}

// pieceMost is how many pages are asked for at a time.
func (r *pageRelay) pieceMost() int {
	return max(1, min(r.pace.piece()/os.Getpagesize(), piecePages))
}

// ask notes a request and, where there is a connection, makes it.
func (r *pageRelay) ask(a asking) {
	a.since = time.Now()
	r.asked = append(r.asked, a)
	if r.peer == nil {
		return
	}
	m := a.message()
	if _, err := r.peer.Write(m[:]); err != nil {
		r.peer.Close() // its reader notices
	}
}

// finish makes fetch and answer return. The connection is left as it is, but for the
// answers that are under way: they are read first, so that the farewell finds its own.
func (r *pageRelay) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.spool.clear()
	r.wind()
	r.change.Broadcast()
}

// wind bounds how long what is under way at the end is waited for.
func (r *pageRelay) wind() {
	if r.peer == nil {
		return
	}
	until := time.Unix(1, 0)
	if len(r.asked) > 0 {
		until = time.Now().Add(farewellTimeout)
	}
	r.peer.SetReadDeadline(until) //nolint:errcheck // one that is gone has ended
}

// answer hands pages to CRIU, in the order of its requests, until finish. It gives what
// there is of an answer: CRIU asks again for the rest.
func (r *pageRelay) answer() {
	for {
		head, pages, ok := r.next()
		if !ok {
			return
		}
		r.arrived(head.task(), head.address(), head.count())
		whole := append(net.Buffers{head[:]}, pages.pages...)
		_, err := whole.WriteTo(r.criu)
		r.mu.Lock()
		r.spool.release(pages)
		r.fill()
		r.mu.Unlock()
		if err != nil {
			r.finish() // it has ended, and the connection has not
			return
		}
	}
}

// next waits for the answer to CRIU's first request, and takes both; false at the end.
func (r *pageRelay) next() (head pageMessage, pages answer, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !ok {
		if r.over {
			return head, pages, false
		}
		if len(r.wants) > 0 {
			head = r.wants[0]
			if pages, ok = r.spool.take(head.task(), head.address(), head.count()); ok {
				break
			}
			r.see(head) // what was under way may have been less, or dropped since
		}
		r.change.Wait()
	}
	r.wants = r.wants[1:]
	binary.NativeEndian.PutUint32(head[:], pages.word)
	binary.NativeEndian.PutUint64(head[8:], uint64(pages.size/os.Getpagesize()))
	return head, pages, true
}

// fetch gets pages until finish, over one connection after another.
func (r *pageRelay) fetch(ctx context.Context) error {
	for {
		r.mu.Lock()
		r.tried = true
		over := r.over
		r.mu.Unlock()
		if over {
			return nil
		}
		peer, err := r.dial(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("connect to the page server: %w", err)
		}
		err = r.talk(peer)
		if err == nil || errors.Is(err, errForeignPages) {
			return err
		}
	}
}

// talk asks on a new connection for all that is missing, and takes answers in until
// that ends (an error), or finish is called (nil).
func (r *pageRelay) talk(peer net.Conn) error {
	if err := r.takeUp(peer); err != nil {
		peer.Close()
		return err
	}
	for {
		err := r.takeIn(peer)
		r.mu.Lock()
		if r.over && (err != nil || len(r.asked) == 0) {
			r.mu.Unlock()
			return nil
		}
		if err != nil {
			r.peer = nil
			r.mu.Unlock()
			peer.Close()
			return err
		}
		r.mu.Unlock()
	}
}

func (r *pageRelay) takeUp(peer net.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.begin()
	for i := range r.asked {
		r.asked[i].since = time.Now()
		m := r.asked[i].message()
		if _, err := peer.Write(m[:]); err != nil {
			return err
		}
	}
	r.peer = peer
	r.fill()
	if r.over {
		r.wind()
	}
	return nil
}

// takeIn puts one answer into the spool.
func (r *pageRelay) takeIn(peer net.Conn) error {
	var head pageMessage
	if _, err := io.ReadFull(peer, head[:]); err != nil {
		return err
	}
	r.mu.Lock()
	fits := len(r.asked) > 0 && head.task() == r.asked[0].task && head.address() == r.asked[0].address &&
		head.count() > 0 && head.count() <= uint64(r.asked[0].count)
	var data []byte
	if fits {
		data = r.spool.buffer(int(head.bytes()))
	}
	r.mu.Unlock()
	if !fits {
		return errForeignPages
	}
	if _, err := io.ReadFull(peer, data); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a, got := r.asked[0], int(head.count())
	r.asked = r.asked[1:]
	if r.over {
		return nil
	}
	r.pace.answered(time.Since(a.since))
	r.spool.put(a.task, a.address, a.how, binary.NativeEndian.Uint32(head[:]), data)
	if got < a.count {
		r.ahead.missed(span{a.task, a.address + uint64(got*os.Getpagesize()), a.count - got})
	}
	r.fill()
	r.change.Broadcast()
	return nil
}

// farewell tells the page server how it went, after run has returned: psClose or
// psGivenUp.
func (r *pageRelay) farewell(command uint32) {
	<-r.done
	if r.peer == nil && !r.tried {
		// Not a page was asked for; the other side waits all the same.
		ctx, cancel := context.WithTimeout(context.Background(), farewellTimeout)
		defer cancel()
		r.peer, _ = r.dial(ctx) //nolint:errcheck // then it is not told
	}
	r.tried = true
	if r.peer == nil {
		return
	}
	var word pageMessage
	binary.NativeEndian.PutUint32(word[:], command)
	r.peer.SetDeadline(time.Now().Add(farewellTimeout)) //nolint:errcheck // then without
	if _, err := r.peer.Write(word[:]); err == nil && command == psClose {
		io.ReadFull(r.peer, make([]byte, 4)) //nolint:errcheck // a courtesy
	}
	r.peer.Close()
	r.peer = nil
}

// farewellTimeout bounds the last words.
const farewellTimeout = 10 * time.Second
