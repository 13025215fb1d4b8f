package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	// earlySize is how much of a file is compressed at a time: no less, so that
	// only what is whole is.
	earlySize = 1 << 20
	// earlyMost bounds the memory with what is compressed, in bytes; on a small
	// host it is a part of all memory.
	earlyMost     = 256 << 20
	earlyFraction = 32
	// earlyFiles bounds how many files are open: each task of a guest has one.
	earlyFiles = 128
)

// Early compresses files while somebody writes them, with processors that are
// idle meanwhile, and keeps the result in memory until a Writer takes it. The files
// must grow at their ends and not change otherwise.
//
// It is a help and nothing more: what it does not have the Writer reads. Nobody
// ever waits for its threads, which may get no processor for long.
type Early struct {
	dir     string
	grows   func(name string) bool
	events  *os.File // inotify
	encoder *zstd.Encoder
	jobs    chan earlyJob
	free    chan []byte
	most    int64
	over    atomic.Bool
	work    sync.WaitGroup
	closed  sync.Once

	mu    sync.Mutex
	files map[int32]*earlyFile // by their watches
	held  int64                // bytes that are compressed
	made  int                  // frames
}

// earlyFile is the beginning of a file.
type earlyFile struct {
	*os.File
	id     inode
	read   int64
	sum    hash.Hash     // of what was read
	frames []*earlyFrame // one for each earlySize bytes of it
}

// earlyFrame is a part of a file.
type earlyFrame struct {
	packed []byte    // nil = it is not compressed yet
	sum    hash.Hash // of the file up to its end
}

// earlyJob is to make a frame of plain.
type earlyJob struct {
	frame *earlyFrame
	plain []byte
}

// NewEarly looks for new files in dir whose names grows accepts, and compresses at
// level, 1 to 22, until Stop. The caller has to close it.
func NewEarly(dir string, level int, grows func(name string) bool) (*Early, error) {
	workers := runtime.GOMAXPROCS(0)
	enc, err := newEncoder(level, workers)
	if err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init", err)
	}
	e := &Early{
		dir: dir, grows: grows, events: os.NewFile(uintptr(fd), "inotify"), encoder: enc, files: map[int32]*earlyFile{},
		jobs: make(chan earlyJob, workers), free: make(chan []byte, workers+1), most: earlyMost,
	}
	if _, err := e.watch(dir, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		e.events.Close()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	var host unix.Sysinfo_t
	if unix.Sysinfo(&host) == nil {
		e.most = min(e.most, int64(host.Totalram)*int64(host.Unit)/earlyFraction)
	}
	for range cap(e.free) {
		e.free <- nil
	}
	e.work.Add(workers + 1)
	for range workers {
		go e.inBackground(e.compress)
	}
	go e.inBackground(func() {
		defer close(e.jobs)
		e.follow()
	})
	return e, nil
}

// inBackground runs fn on a thread that takes only what the others leave of the
// processors: whoever writes the files has a guest stand still.
func (e *Early) inBackground(fn func()) {
	defer e.work.Done()
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	const lowest = 19
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), lowest) // as good as it goes
	fn()
}

// Stop has nothing more begun. It is idempotent, and nil has nothing to stop.
func (e *Early) Stop() {
	if e == nil {
		return
	}
	e.over.Store(true)
	e.events.Close()
}

// Close stops, and forgets all that was not taken. What is under way at that moment
// ends by itself. It is idempotent.
func (e *Early) Close() {
	if e == nil {
		return
	}
	e.Stop()
	e.closed.Do(func() {
		go func() {
			e.work.Wait()
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, f := range e.files {
				f.Close()
			}
		}()
	})
}

// follow reads what is new whenever something is.
func (e *Early) follow() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := e.events.Read(buffer)
		if err != nil {
			return
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			watch := int32(binary.NativeEndian.Uint32(buffer[at:]))
			length := int(binary.NativeEndian.Uint32(buffer[at+12:]))
			name := unix.ByteSliceToString(buffer[at+unix.SizeofInotifyEvent : at+unix.SizeofInotifyEvent+length])
			at += unix.SizeofInotifyEvent + length
			f := e.watched(watch)
			if name != "" && e.grows(name) {
				f = e.open(name)
			}
			if f != nil && !e.readNew(f) {
				return
			}
		}
	}
}

func (e *Early) watched(watch int32) *earlyFile {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.files[watch]
}

// open begins to watch a file; nil where that cannot be done.
func (e *Early) open(name string) *earlyFile {
	path := filepath.Join(e.dir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil
	}
	file := &earlyFile{File: f, id: inode{st.Dev, st.Ino}, sum: sha256.New()}
	// By the descriptor, so that it is the same file.
	watch, err := e.watch(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.IN_MODIFY)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forgetSmall()
	if err != nil || e.files[watch] != nil || len(e.files) >= earlyFiles {
		f.Close()
		return nil
	}
	e.files[watch] = file
	return file
}

// forgetSmall closes files of which there is nothing: when the next one is made, they
// have all that they will have. The caller has the lock.
func (e *Early) forgetSmall() {
	for watch, f := range e.files {
		if len(f.frames) == 0 {
			f.Close()
			delete(e.files, watch)
		}
	}
}

// watch is for whoever may race with Stop.
func (e *Early) watch(path string, mask uint32) (watch int32, err error) {
	events, err := e.events.SyscallConn()
	if err != nil {
		return 0, err
	}
	closed := events.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), path, mask)
		watch = int32(n)
	})
	return watch, errors.Join(closed, err)
}

// readNew hands on what there is of a file, as far as it can be kept; false means
// that this is all.
func (e *Early) readNew(f *earlyFile) bool {
	st, err := f.Stat()
	if err != nil {
		return false
	}
	for st.Size()-f.read >= earlySize {
		if e.over.Load() || e.isFull() {
			return false
		}
		plain := <-e.free
		if plain == nil {
			plain = make([]byte, earlySize)
		}
		if n, err := f.ReadAt(plain, f.read); n < earlySize || err != nil {
			return false
		}
		f.sum.Write(plain)
		f.read += earlySize
		frame := &earlyFrame{}
		var err error
		if frame.sum, err = f.sum.(hash.Cloner).Clone(); err != nil {
			return false
		}
		e.mu.Lock()
		f.frames = append(f.frames, frame)
		e.mu.Unlock()
		e.jobs <- earlyJob{frame, plain}
	}
	return true
}

func (e *Early) isFull() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.held > e.most
}

func (e *Early) compress() {
	var packed []byte
	for job := range e.jobs {
		if !e.over.Load() {
			packed = e.encoder.EncodeAll(job.plain, packed[:0])
			e.keep(job.frame, bytes.Clone(packed))
		}
		e.free <- job.plain
	}
}

func (e *Early) keep(frame *earlyFrame, packed []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	frame.packed = packed
	e.held += int64(len(packed))
	e.made++
}

// take returns the frames that there are of the beginning of a file that has size
// bytes by now. A file that others have made since under the same name is another
// one: as long as the first is open nobody gets its inode.
func (e *Early) take(f *os.File, size int64) ([]*earlyFrame, error) {
	if e == nil {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for watch, file := range e.files {
		if file.id != (inode{st.Dev, st.Ino}) {
			continue
		}
		delete(e.files, watch)
		file.Close() // its room is given back as soon as it has no name
		if int64(len(file.frames))*earlySize > size {
			return nil, nil
		}
		whole := 0
		for whole < len(file.frames) && file.frames[whole].packed != nil {
			whole++
		}
		return file.frames[:whole], nil
	}
	return nil, nil
}
