//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// The process that waits for a guest's memory is the one on whose connection the
// guest came. A new connection has a process of its own, which hands its stream of
// pages over through a socket in the container's state directory: root's alone.

// linkSocket is its name.
const linkSocket = "link.sock"

// What is said first on it, one byte.
const (
	linkPages  = 'p' // a stream of pages follows
	linkGiveUp = 'g' // no memory comes any more
	linkTaken  = 'k' // the answer to linkPages
)

// linkWord bounds the exchange of these.
const linkWord = 10 * time.Second

// pageLink is where a reception gets new streams of pages from, in place of one
// that was lost.
type pageLink struct {
	listener *net.UnixListener
	next     chan net.Conn // at most one, the newest
	gaveUp   chan struct{} // closed at linkGiveUp
	mu       sync.Mutex
	current  io.Closer // the stream in use
	renewed  bool      // it is not the first any more
}

// openLink makes the socket of a container whose state directory is dir.
func openLink(dir string) (*pageLink, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	path := filepath.Join(dir, linkSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// By its descriptor: paths of sockets must be short.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: inDir(d, linkSocket), Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // the descriptor may be somebody else's by then
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	l := &pageLink{listener: ln, next: make(chan net.Conn, 1), gaveUp: make(chan struct{})}
	go l.accept()
	return l, nil
}

// accept ends with the listener.
func (l *pageLink) accept() {
	defer func() {
		select {
		case conn := <-l.next:
			conn.Close()
		default:
		}
	}()
	given := false
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return
		}
		word := make([]byte, 1)
		conn.SetDeadline(time.Now().Add(linkWord)) //nolint:errcheck // then without
		if _, err := io.ReadFull(conn, word); err != nil {
			conn.Close()
			continue
		}
		if word[0] != linkPages {
			conn.Close()
			if !given {
				given = true
				close(l.gaveUp)
			}
			continue
		}
		if _, err := conn.Write([]byte{linkTaken}); err != nil {
			conn.Close()
			continue
		}
		conn.SetDeadline(time.Time{}) //nolint:errcheck // one that is gone is noticed by its reader
		select {
		case old := <-l.next:
			old.Close()
		default:
		}
		l.drop() // before the new one can be in use
		l.next <- conn
	}
}

// use notes the stream in use.
func (l *pageLink) use(stream io.Closer, renewed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.renewed = stream, renewed
}

// drop ends the stream in use: the source has another one, so what still looks like
// a connection here is none.
func (l *pageLink) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		l.current.Close()
		l.current = nil
	}
}

func (l *pageLink) wasRenewed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed
}

// await waits for a new stream of pages.
func (l *pageLink) await(ctx context.Context, most time.Duration) (net.Conn, error) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case conn := <-l.next:
		l.use(conn, true)
		return conn, nil
	case <-timer.C:
		return nil, fmt.Errorf("%w, and there was no other within %v", wire.ErrLost, most)
	case <-l.gaveUp:
		return nil, fmt.Errorf("%w, and the source has its memory no more", wire.ErrLost)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close lets no more streams come.
func (l *pageLink) close(dir string) {
	os.Remove(filepath.Join(dir, linkSocket)) //nolint:errcheck // it goes with the container at the latest
	l.listener.Close()
}

// dialPages waits for the stream of pages, which the source has opened by now, and
// later for another one.
func (r *reception) dialPages(ctx context.Context) (net.Conn, error) {
	if !r.dialled.Swap(true) {
		select {
		case s := <-r.pages:
			return s, nil
		case <-r.session.Lost():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if !r.prepared.Load() {
		return nil, wire.ErrLost
	}
	select {
	case <-r.committed:
	case <-ctx.Done(): // the restore has failed
		return nil, ctx.Err()
	}
	most := time.Duration(r.offer.LinkTimeout * float64(time.Second))
	if most == 0 {
		return nil, wire.ErrLost
	}
	r.host.warn(r.offer.NewID, "the connection to the source is lost: it waits for its memory, for up to %v", most)
	return r.link.await(ctx, most)
}

// awaitMemory waits until the guest that runs here has all of its memory. Where it
// does not arrive the guest has been ended, and there is a record of that.
func (r *reception) awaitMemory(c *Container) error {
	if c.arrival == nil {
		return nil
	}
	defer r.link.listener.Close()
	// All that has a name is removed here, under the container's lock: afterwards
	// what has it may be another one's, which has come since.
	var noted error
	came := r.entry.Operation.Migration
	c.arrival.note = func(arrived bool) {
		r.link.close(filepath.Join(r.host.opts.Root, c.id))
		r.faults = c.arrival.lazy.Faults()
		m := &migrationRecord{Token: r.offer.Token, ID: r.offer.NewID, State: recordLost, Faults: r.faults}
		if arrived {
			m.State = recordRunning
			noted = errors.Join(r.record.write(m), keepBundle(came))
		} else {
			noted = errors.Join(r.record.write(m), dropBundle(came))
		}
	}
	if err := c.AwaitMemory(context.Background()); err != nil {
		return errors.Join(err, noted)
	}
	if noted != nil {
		r.host.warn(c.id, "%v", noted)
	}
	return nil
}

// dialLink connects to the process that waits for the memory of a container, of
// whose migration there is a record, and says a word.
func (h *Host) dialLink(record recordAt, word byte) (*net.UnixConn, error) {
	m, err := record.read()
	if err != nil {
		return nil, err
	}
	if m.State != recordCommitted || CheckID(m.ID) != nil {
		return nil, ErrNotExist
	}
	d, err := os.Open(filepath.Join(h.opts.Root, m.ID))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: inDir(d, linkSocket), Net: "unix"})
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(linkWord)) //nolint:errcheck // then without
	if _, err = conn.Write([]byte{word}); err == nil && word == linkPages {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time{})
}

// takeLink serves a connection by which a source comes back that has lost one. It
// has no more to do than to pass pages on to the process that waits for them.
func (r *reception) takeLink(ctx context.Context, msg *wire.Message) error {
	var q rejoin
	if err := msg.Decode(&q); err != nil {
		return r.refuse(err)
	}
	record, err := recordOf(r.o.Bundles, q.Token)
	if err != nil {
		return r.refuse(err)
	}
	var link *net.UnixConn
	// It may still be about to note that it has the word, and to wait for us.
	state, err := r.host.outcomeOf(record, func() bool {
		link, err = r.host.dialLink(record, linkPages)
		return err == nil
	})
	if err == nil && state == recordWaiting {
		defer link.Close()
		if err := r.passPages(link, q.Compress); err != nil {
			return explainRejoin(err)
		}
		state, err = r.host.outcomeOf(record, nil)
	}
	if err != nil {
		return r.refuse(err)
	}
	if r.control.State() == wire.Rejoining {
		if err := r.control.Send(wire.Outcome, outcome{State: state}); err != nil {
			return explainRejoin(err)
		}
	}
	if state != recordRunning {
		r.session.Linger()
		return nil
	}
	m, err := record.read()
	if err == nil {
		err = r.control.Send(wire.Arrived, arrivedAll{Faults: m.Faults})
	}
	if err == nil {
		err = r.awaitDone(ctx, record)
	}
	return explainRejoin(err)
}

// explainRejoin is explainWire for a connection of which others may follow.
func explainRejoin(err error) error {
	return explainLink(err, "the source makes another, or lazy-migrate --resolve there finds out")
}

// passPages tells the source that it is waited for, and passes pages on until
// either side has no more to say. An error wraps wire.ErrLost.
func (r *reception) passPages(link *net.UnixConn, compress string) error {
	if err := r.session.SetShape(wire.Shape{Compression: compress}); err != nil {
		return err
	}
	if err := r.control.Send(wire.Outcome, outcome{State: recordWaiting}); err != nil {
		return err
	}
	s, err := r.session.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	if s.Kind != streamPages {
		return fmt.Errorf("%w: a stream of kind %.32q", wire.ErrProtocol, s.Kind)
	}
	var both sync.WaitGroup
	for _, way := range [][2]io.ReadWriteCloser{{link, s}, {s, link}} {
		both.Go(func() {
			io.Copy(way[0], way[1]) //nolint:errcheck // however it ends, it has
			link.Close()
			s.Close()
		})
	}
	both.Wait()
	select {
	case <-r.session.Lost():
		return wire.ErrLost
	default:
		return nil
	}
}

// awaitDone forgets a migration when the source says that its copy is gone.
func (r *reception) awaitDone(ctx context.Context, record recordAt) error {
	waiting, cancel := context.WithTimeout(ctx, donePatience)
	defer cancel()
	if _, err := r.control.Receive(waiting); err != nil {
		return err
	}
	return record.remove()
}
