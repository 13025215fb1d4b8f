package criu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/checkpoint-restore/go-criu/v8/stats"
	"golang.org/x/sys/unix"
)

// Names of CRIU's logs in the work directory.
const (
	DumpLog    = "dump.log"
	RestoreLog = "restore.log"
)

// ParentLink is the symbolic link by which CRIU finds what images build on, in their
// directory.
const ParentLink = "parent"

// StageFrozen is a stage that CRIU does not have: the guest stands still, and CRIU
// has not looked at it yet. It comes only where the guest could be frozen so early.
const StageFrozen = "frozen"

// attempts is how often a dump that lost a race is tried in all. Each attempt
// freezes the guest for a few hundred milliseconds; when the race was seen, the
// next attempt won it every time.
const attempts = 5

// attemptPause is for how long the guest runs before the second attempt, twice as long
// before each further one, and no less than half of what the last one took: whoever was
// about to take what was in the way has to get a processor, and nothing tells when it has.
// Frozen as fast as we do it, a guest on a busy machine had the same message in a socket
// five times; and where a machine is emulated, all takes ten times as long.
const attemptPause = 20 * time.Millisecond

// GhostLimit is the size in bytes above which CRIU refuses an open file that has
// no name any more. Its own, 1 MiB, keeps images small, and refuses databases that
// sort on disk. This is the most that its protocol has room for.
const GhostLimit = math.MaxUint32

// External is a mount that is not saved but taken from outside at the restore:
// Key names it in the images, Val is its place in the guest at the dump and
// its source on the host at the restore.
type External struct{ Key, Val string }

// Common are the options that a dump and its restore share.
type Common struct {
	Criu string // path of criu
	// Images and Work are directories that exist. Logs and statistics go
	// to Work.
	Images, Work string
	// Root is the guest's root directory on the host; at a restore it must
	// be a mount point.
	Root          string
	Mounts        []External
	ManageCgroups string // "", ignore, none, props, soft, full, strict
	// ConfigFile is a configuration file of CRIU's, whose options win over
	// these; "" = none, and one that cannot be opened is none either.
	ConfigFile string
	// AutoDedup gives back the room of pages as soon as nobody needs them in
	// that place: those of parents that are saved again, and all that are
	// restored. EmptyNet leaves out what is in the network namespace.
	AutoDedup, EmptyNet bool
	TCPEstablished, ExtUnixSockets, ShellJob,
	FileLocks, LinkRemap bool
	// BriefLog leaves out of the log what is no error or warning, which takes CRIU a
	// tenth of its time in a restore.
	BriefLog bool
	// TCPClose makes open TCP connections closed ones at the restore.
	TCPClose bool
	// Started is told criu's pid before it begins to work; nil = nobody.
	// It may place the process (cgroups).
	Started func(pid int) error
	// Stage is asked for consent at each of CRIU's stages; nil consents.
	Stage func(Stage) error
	// Stalled is told of a CRIU that has done nothing for a minute, from another goroutine;
	// nil = nobody. A dump is ended four minutes later, with ErrStalled, unless "post-dump"
	// has come; a restore is not.
	Stalled func(Stall)
}

// DumpOptions say what to dump and how. Zero values are off.
type DumpOptions struct {
	Common
	// Unsized are files, and directories of files, of the guest whose size
	// says nothing: it is not compared at the restore.
	Unsized []string
	Pid     int // the guest's init, in the caller's pid namespace
	// Parent is the directory of an earlier pre-dump, relative to Images.
	Parent string
	// FreezeCgroup is the cgroup directory that is frozen while CRIU seizes
	// the tasks; "" = it stops them one by one.
	FreezeCgroup string
	freezer      *freezer // of FreezeCgroup; may be nil
	// Namespaces are the guest's namespaces that live on without it, as
	// CRIU writes them: net[INODE]:KEY.
	Namespaces            []string
	LeaveRunning, PreDump bool
	// TCPSkipInFlight leaves out connections that are not accepted yet.
	TCPSkipInFlight bool
	// Lazy, where not nil, makes the dump a lazy one. It is called when the
	// images are complete but for most of the memory, and consented to; the
	// tasks are stopped. When it returns nil the tasks are ended; an error
	// fails the dump, and they run as before but for the network, which
	// stays locked. It must return when its ctx is done.
	Lazy func(context.Context, *PageServer) error
	// SendPages is a stream socket that leads to a `criu page-server`; the
	// memory goes there and not to Images. PageServer is its address, where
	// CRIU is to connect.
	SendPages  *os.File
	PageServer struct {
		Address string
		Port    int
	}
}

// Stats is what CRIU measured.
type Stats struct {
	// Of a dump. Frozen is for how long the tasks stood still.
	Freezing, Frozen, MemDump, MemWrite time.Duration
	Forking, Restore                    time.Duration // of a restore
	Pages                               uint64        // written, or restored
	Attempts                            int           // of a dump
}

// Dump saves the process tree below o.Pid into o.Images. When it returns nil
// the tasks are gone (or running again, with LeaveRunning or PreDump); when it
// returns an error they run as before: CRIU undoes a dump that fails, and one
// whose "post-dump" stage was refused, which is therefore the place to commit.
func Dump(ctx context.Context, o DumpOptions) (*Stats, error) {
	if o.FreezeCgroup != "" {
		o.freezer = newFreezer(o.FreezeCgroup)
		defer o.freezer.close()
	}
	for n := 1; ; n++ {
		begun := time.Now()
		err := dumpOnce(ctx, o)
		took := time.Since(begun)
		if err == nil {
			s, err := readStats(o.Work, true)
			if err != nil {
				// The images are whole: numbers are not worth failing for.
				s = &Stats{}
			}
			s.Attempts = n
			s.Frozen += o.freezer.heldFor()
			return s, nil
		}
		var e *Error
		if n == attempts || !errors.As(err, &e) || !e.Retry || ctx.Err() != nil {
			return nil, err
		}
		if err := Discard(o.Images); err != nil {
			return nil, err
		}
		select {
		case <-time.After(max(attemptPause<<(n-1), took/2)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func dumpOnce(ctx context.Context, o DumpOptions) error {
	opts, closeDirs, err := o.options(DumpLog)
	if err != nil {
		return err
	}
	defer closeDirs()
	opts.Pid = new(int32(o.Pid))
	opts.LeaveRunning = new(o.LeaveRunning)
	opts.GhostLimit = new(uint32(GhostLimit))
	opts.TcpSkipInFlight = new(o.TCPSkipInFlight)
	opts.External = o.Namespaces
	if o.FreezeCgroup != "" {
		opts.FreezeCgroup = new(o.FreezeCgroup)
	}
	if o.freezer != nil {
		opts.FreezeCgroup = new(o.freezer.path())
	}
	if o.Parent != "" {
		opts.ParentImg = new(o.Parent)
	}
	opts.TrackMem = new(o.PreDump || o.Parent != "")
	kind := rpc.CriuReqType_DUMP
	if o.PreDump {
		kind = rpc.CriuReqType_SINGLE_PRE_DUMP
	}
	var inherit []*os.File
	var lazy *lazyDump
	extra := ""
	switch {
	case o.Lazy != nil:
		if lazy, err = o.prepareLazy(); err != nil {
			return err
		}
		defer lazy.close()
		opts.LazyPages = new(true)
		extra = fmt.Sprintf("ps-socket %d", inheritBase)
		inherit = []*os.File{lazy.theirs, lazy.mine}
	case o.SendPages != nil:
		opts.Ps = &rpc.CriuPageServerInfo{Fd: new(int32(inheritBase))}
		inherit = []*os.File{o.SendPages}
	case o.PageServer.Address != "":
		opts.Ps = &rpc.CriuPageServerInfo{Address: &o.PageServer.Address, Port: new(int32(o.PageServer.Port))}
	}
	inherit, err = o.configure(opts, extra, inherit)
	if err != nil {
		return err
	}
	err = o.dumpWith(ctx, &rpc.CriuReq{Type: &kind, Opts: opts}, lazy, inherit)
	if err != nil {
		return explain("dump", filepath.Join(o.Work, DumpLog), err)
	}
	return nil
}

// dumpWith sees one request for a dump through.
func (o *DumpOptions) dumpWith(ctx context.Context, req *rpc.CriuReq, lazy *lazyDump, inherit []*os.File) error {
	s, err := o.serve([3]*os.File{}, inherit...)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	unwatched := s.watch(stallWatch{every: stallLook, log: filepath.Join(o.Work, DumpLog), tell: o.Stalled, end: end})
	defer unwatched()
	if o.PreDump { // which has no stages
		if err := o.freeze(); err != nil {
			return errors.Join(err, s.close(), o.freezer.thaw())
		}
	}
	refused := false
	settled := s.abortAfter(ctx)
	_, err = s.do(ctx, req, func(st Stage) (err error) {
		// CRIU goes on to serve pages of a dump that was refused.
		defer func() { refused = refused || err != nil }()
		if st.Name == "post-dump" || st.Name == "status-ready" {
			// Whoever consents may rely on it from here on.
			if unwatched(); ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		if st.Name == "status-ready" && lazy != nil {
			if refused {
				return errors.New("refused before")
			}
			lazy.begin(ctx, s.kill)
			return nil
		}
		return o.stage(st)
	})
	settled()
	unwatched()
	if stalled := context.Cause(ctx); err != nil && errors.Is(stalled, ErrStalled) {
		err = &refusal{stalled}
	}
	// CRIU's answer says more than its exit status.
	if closed := s.close(); closed != nil && err == nil {
		err = fmt.Errorf("criu: %w", closed)
	}
	if lazy != nil {
		err = lazy.wait(err)
	}
	return errors.Join(err, o.freezer.thaw())
}

// stage does what is to be done at one of CRIU's, and asks for consent: to images that
// are changed before.
func (o *DumpOptions) stage(st Stage) error {
	if st.Name == "post-dump" {
		if err := errors.Join(mendExeLinks(o.Images), forgetSizes(o.Images, o.Unsized)); err != nil {
			return err
		}
		if err := mendWatches(o.Images, o.Pid); err != nil {
			return err
		}
		if err := nameWatches(o.Images, o.Pid); err != nil {
			return err
		}
	}
	if o.Stage != nil {
		if err := o.Stage(st); err != nil {
			return err
		}
	}
	if st.Name == "pre-dump" {
		return o.freeze()
	}
	return nil
}

// freeze freezes the guest, where it can, and asks for consent then.
func (o *DumpOptions) freeze() error {
	if err := o.freezer.freeze(); err != nil || o.Stage == nil || !o.freezer.isHeld() {
		return err
	}
	return o.Stage(Stage{Name: StageFrozen})
}

// serve starts the criu process of one request, and tells who wants to know.
func (c *Common) serve(stdio [3]*os.File, inherit ...*os.File) (*server, error) {
	s, err := serve(c.Criu, stdio, inherit...)
	if err != nil {
		return nil, err
	}
	if c.Started != nil {
		if err := c.Started(s.cmd.Process.Pid); err != nil {
			s.close() //nolint:errcheck // it was asked for nothing
			return nil, err
		}
	}
	return s, nil
}

// options fills what both operations share. The directories stay open until
// the returned function is called: CRIU opens them through /proc/<us>/fd.
func (c *Common) options(log string) (*rpc.CriuOpts, func(), error) {
	images, err := os.Open(c.Images)
	if err != nil {
		return nil, nil, fmt.Errorf("open image directory: %w", err)
	}
	work, err := os.Open(c.Work)
	if err != nil {
		images.Close()
		return nil, nil, fmt.Errorf("open work directory: %w", err)
	}
	mode, err := cgroupMode(c.ManageCgroups)
	if err != nil {
		images.Close()
		work.Close()
		return nil, nil, err
	}
	level := int32(4) // debug
	if c.BriefLog {
		level = 2
	}
	empty := uint32(0)
	if c.EmptyNet {
		empty = unix.CLONE_NEWNET
	}
	opts := &rpc.CriuOpts{
		ImagesDirFd:       new(int32(images.Fd())),
		WorkDirFd:         new(int32(work.Fd())),
		LogLevel:          &level,
		LogFile:           new(log),
		Root:              new(c.Root),
		NotifyScripts:     new(true),
		ManageCgroups:     new(true),
		ManageCgroupsMode: mode.Enum(),
		TcpEstablished:    new(c.TCPEstablished),
		TcpClose:          new(c.TCPClose),
		ExtUnixSk:         new(c.ExtUnixSockets),
		ShellJob:          new(c.ShellJob),
		FileLocks:         new(c.FileLocks),
		LinkRemap:         new(c.LinkRemap),
		OrphanPtsMaster:   new(true),
		AutoDedup:         new(c.AutoDedup),
		// The guest's network namespace is saved with all that is in it
		// (an empty one loses units with PrivateNetwork=).
		EmptyNs:     &empty,
		NetworkLock: rpc.CriuNetworkLockMethod_NFTABLES.Enum(),
	}
	for _, m := range c.Mounts {
		opts.ExtMnt = append(opts.ExtMnt, &rpc.ExtMountMap{Key: new(m.Key), Val: new(m.Val)})
	}
	return opts, func() { images.Close(); work.Close() }, nil
}

// configure adds the configuration file to what criu inherits, with a line of
// ours. criu gets what is in it now, wherever it lies.
func (c *Common) configure(opts *rpc.CriuOpts, line string, inherit []*os.File) ([]*os.File, error) {
	var text []byte
	if c.ConfigFile != "" {
		var err error
		if text, err = os.ReadFile(c.ConfigFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("criu configuration: %w", err)
		}
	}
	if line == "" && len(text) == 0 {
		return inherit, nil
	}
	fd, err := unix.MemfdCreate("criu.conf", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "criu.conf")
	if _, err := f.Write(append(text, "\n"+line+"\n"...)); err != nil {
		f.Close()
		return nil, fmt.Errorf("criu configuration: %w", err)
	}
	opts.ConfigFile = new(fmt.Sprintf("/proc/self/fd/%d", inheritBase+len(inherit)))
	// It is closed when it is collected: criu has it by then, or never will.
	return append(inherit, f), nil
}

func cgroupMode(name string) (rpc.CriuCgMode, error) {
	switch name {
	case "":
		return rpc.CriuCgMode_DEFAULT, nil
	case "ignore":
		return rpc.CriuCgMode_IGNORE, nil
	case "none":
		return rpc.CriuCgMode_CG_NONE, nil
	case "props":
		return rpc.CriuCgMode_PROPS, nil
	case "soft":
		return rpc.CriuCgMode_SOFT, nil
	case "full":
		return rpc.CriuCgMode_FULL, nil
	case "strict":
		return rpc.CriuCgMode_STRICT, nil
	}
	return 0, fmt.Errorf("unknown cgroup mode %q: ignore, none, props, soft, full and strict are known", name)
}

// readStats reads the statistics that CRIU leaves in its work directory.
func readStats(work string, dump bool) (*Stats, error) {
	dir, err := os.Open(work)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	us := func(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
	if dump {
		d, err := stats.CriuGetDumpStats(dir)
		if err != nil {
			return nil, fmt.Errorf("read dump statistics: %w", err)
		}
		return &Stats{
			Freezing: us(d.GetFreezingTime()), Frozen: us(d.GetFrozenTime()),
			MemDump: us(d.GetMemdumpTime()), MemWrite: us(d.GetMemwriteTime()),
			Pages: d.GetPagesWritten() + d.GetShpagesWritten(),
		}, nil
	}
	r, err := stats.CriuGetRestoreStats(dir)
	if err != nil {
		return nil, fmt.Errorf("read restore statistics: %w", err)
	}
	return &Stats{Forking: us(r.GetForkingTime()), Restore: us(r.GetRestoreTime()), Pages: r.GetPagesRestored()}, nil
}

// Discard removes the images of a failed dump from a directory that held none
// before, and nothing else that may lie in it; the log stays. A directory that
// is not there is no error.
func Discard(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && filepath.Ext(e.Name()) == ".img" {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
