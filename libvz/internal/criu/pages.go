package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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

// pageRelay moves the requests of a `criu lazy-pages` to a page server, and pages
// back. A connection may end at any moment and another one follow: an answer is
// handed on only when it is whole, and what has none is asked again, so that CRIU
// notices nothing but time that goes by.
type pageRelay struct {
	criu net.Conn
	// dial is called when the first page is asked for, and each time that a
	// connection has ended.
	dial func(context.Context) (net.Conn, error)
	// arrived is told of pages before they are handed on: whose, where, how many.
	arrived func(pid, address, count uint64)

	mu    sync.Mutex
	asked []pageMessage // requests without an answer
	peer  net.Conn      // nil: there is no connection
	tried bool          // dial has been called
	over  bool          // CRIU says no more
	done  chan struct{} // closed when the relay ends, after which nobody else uses peer
}

func newPageRelay(criu net.Conn, dial func(context.Context) (net.Conn, error), arrived func(pid, address, count uint64)) *pageRelay {
	return &pageRelay{criu: criu, dial: dial, arrived: arrived, done: make(chan struct{})}
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
	fetched := make(chan error, 1)
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
		r.ask(request)
		if !begun {
			begun = true
			go func() {
				err := r.fetch(ctx)
				fetched <- err
				if err != nil {
					cancel() // nothing more can be asked
				}
			}()
		}
	}
	r.finish()
	if !begun {
		return nil
	}
	cancel() // a dial; connections have been told
	return <-fetched
}

// ask notes a request and, where there is a connection, makes it.
func (r *pageRelay) ask(request pageMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, request)
	if r.peer == nil {
		return
	}
	if _, err := r.peer.Write(request[:]); err != nil {
		r.peer.Close() // its reader notices
	}
}

// finish makes fetch return, with the connection left as it is.
func (r *pageRelay) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.peer != nil {
		r.peer.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // one that is gone has ended
	}
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

// talk asks on a new connection for all that is missing, and hands answers on
// until that ends (an error), or finish is called (nil).
func (r *pageRelay) talk(peer net.Conn) error {
	if err := r.takeUp(peer); err != nil {
		peer.Close()
		return err
	}
	var body []byte
	for {
		var err error
		if body, err = r.handOn(peer, body); err == nil {
			continue
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.over {
			return nil
		}
		r.peer = nil
		peer.Close()
		return err
	}
}

func (r *pageRelay) takeUp(peer net.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.asked {
		if _, err := peer.Write(r.asked[i][:]); err != nil {
			return err
		}
	}
	r.peer = peer
	if r.over {
		peer.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // as in finish
	}
	return nil
}

// handOn moves one answer to CRIU, by way of a buffer that it returns.
func (r *pageRelay) handOn(peer net.Conn, body []byte) ([]byte, error) {
	var head pageMessage
	if _, err := io.ReadFull(peer, head[:]); err != nil {
		return body, err
	}
	r.mu.Lock()
	fits := len(r.asked) > 0 && head.address() == r.asked[0].address() && head.task() == r.asked[0].task() && head.count() <= r.asked[0].count() && head.count() <= maxPages
	r.mu.Unlock()
	if !fits {
		return body, errForeignPages
	}
	size := len(head) + int(head.bytes())
	if cap(body) < size {
		body = make([]byte, size)
	}
	body = body[:size]
	copy(body, head[:])
	if _, err := io.ReadFull(peer, body[len(head):]); err != nil {
		return body, err
	}
	r.arrived(head.task(), head.address(), head.count())
	_, err := r.criu.Write(body)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = r.asked[1:]
	r.over = r.over || err != nil // it has ended, and the connection has not
	return body, err
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
