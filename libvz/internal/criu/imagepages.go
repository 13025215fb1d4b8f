package criu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// imagePages serves pages from a directory of images as a page server does, for a lazy
// restore of a guest whose memory is there. Its dial is LazyOptions.Dial.
type imagePages struct {
	dir   string
	tasks map[uint64]*imageTask
	ended chan error // why serve has ended; nil: it has not begun
}

// imageTask is where the pages of a task are.
type imageTask struct {
	file   *os.File
	ranges []pageRange // of those in the file, by address; numbers are places in the file
}

func (p *imagePages) dial(ctx context.Context) (net.Conn, error) {
	if p.ended != nil {
		select {
		case err := <-p.ended:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pages")
		defer f.Close()
		if conns[i], err = net.FileConn(f); err != nil {
			return nil, fmt.Errorf("socket for pages: %w", err)
		}
		widen(f)
	}
	p.ended = make(chan error, 1)
	go func() {
		err := p.serve(conns[1])
		conns[1].Close()
		p.ended <- err
	}()
	return conns[0], nil
}

// serve answers until it is told to end.
func (p *imagePages) serve(conn net.Conn) error {
	defer func() {
		for _, t := range p.tasks {
			t.file.Close()
		}
	}()
	p.tasks = map[uint64]*imageTask{}
	buffer := make([]byte, len(pageMessage{})+piecePages*os.Getpagesize())
	for {
		var q pageMessage
		if _, err := io.ReadFull(conn, q[:]); err != nil {
			return err
		}
		if q.command() != psGet {
			_, err := conn.Write(make([]byte, 4)) // who says so waits for a status
			return errors.Join(net.ErrClosed, err)
		}
		answer, err := p.answer(&q, buffer)
		if err != nil {
			return err
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}

func (p *imagePages) answer(q *pageMessage, buffer []byte) ([]byte, error) {
	t, err := p.task(q.task())
	if err != nil {
		return nil, err
	}
	r := rangeAt(t.ranges, q.address())
	if r == nil {
		return nil, fmt.Errorf("the images have no page of task %d at %#x", q.task(), q.address())
	}
	size := os.Getpagesize()
	place := r.first + int(q.address()-r.address)/size // in the file, in pages
	count := min(int(min(q.count(), piecePages)), r.first+r.pages-place)
	binary.NativeEndian.PutUint32(q[:], psAdd)
	binary.NativeEndian.PutUint64(q[8:], uint64(count))
	n := copy(buffer, q[:])
	if _, err := t.file.ReadAt(buffer[n:n+count*size], int64(place)*int64(size)); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.file.Name(), err)
	}
	return buffer[:n+count*size], nil
}

// task opens the images of a task.
func (p *imagePages) task(task uint64) (*imageTask, error) {
	if t := p.tasks[task]; t != nil {
		return t, nil
	}
	m, err := readPagemap(filepath.Join(p.dir, fmt.Sprintf("pagemap-%d.img", task)))
	if err != nil {
		return nil, err
	}
	t := &imageTask{}
	for _, e := range m.entries {
		if e.flags&pagemapPresent != 0 {
			t.ranges = append(t.ranges, e.pageRange)
		}
	}
	number(t.ranges)
	slices.SortFunc(t.ranges, byAddress)
	if t.file, err = os.OpenFile(filepath.Join(p.dir, fmt.Sprintf("pages-%d.img", m.pages)), os.O_RDONLY|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	p.tasks[task] = t
	return t, nil
}
