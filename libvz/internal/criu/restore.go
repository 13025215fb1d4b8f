package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// Veth is one veth pair that CRIU makes anew: Inner in the guest, Outer in
// the network namespace of the caller.
type Veth struct{ Inner, Outer string }

// Inherit is an open file that takes the place of the one that the images
// call Key ("pipe:[123]", "extRootNetNS").
type Inherit struct {
	Key  string
	File *os.File
}

// Join is a namespace that the guest joins in place of one of the images: Kind is
// "ipc" or "uts".
type Join struct {
	Kind string
	File *os.File
}

// CgroupRoot maps the root of a v1 controller ("" or "name=x" too) to Path.
type CgroupRoot struct{ Controller, Path string }

// RestoreOptions say what to restore and how.
type RestoreOptions struct {
	Common // without Criu, ConfigFile and Started, which are for who starts it
	// ImagesDir, where not nil, is used in place of Images: an open
	// directory, such as an id-mapped view of it, that the guest's root
	// may search and read.
	ImagesDir *os.File
	Veths     []Veth
	Join      []Join
	Cgroups   []CgroupRoot // which criu is in
	// LSMProfile ("apparmor:NAME" or "selinux:LABEL") and LSMMountContext
	// take the place of what the tasks and the mounts had.
	LSMProfile, LSMMountContext string
	// Lazy leaves memory to the LazyPages that listens in Work.
	Lazy bool
}

// RestorerOptions say how to start a criu for a restore.
type RestorerOptions struct {
	Criu    string      // path of criu
	Stdio   [3]*os.File // of criu, hence of tasks that inherit them; nil = /dev/null
	Inherit []Inherit
	// ConfigFile is as in Common.
	ConfigFile string
	// ShareMemory lets the kernel merge equal pages of the tasks (KSM).
	ShareMemory bool
}

// Restorer is a criu that has been started and waits to be told what to restore. What
// it is to find can be made meanwhile. It has the mount and network namespaces of the
// thread that has started it.
type Restorer struct {
	server  *server
	inherit []*rpc.InheritFd
	config  *string
}

// StartRestorer returns one that must be closed.
func StartRestorer(o RestorerOptions) (*Restorer, error) {
	var opts rpc.CriuOpts
	files := make([]*os.File, 0, len(o.Inherit))
	for i, in := range o.Inherit {
		files = append(files, in.File)
		opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: new(in.Key), Fd: new(int32(inheritBase + i))})
	}
	files, err := (&Common{ConfigFile: o.ConfigFile}).configure(&opts, "", files)
	if err != nil {
		return nil, err
	}
	r := &Restorer{inherit: opts.InheritFd, config: opts.ConfigFile}
	err = mergeable(o.ShareMemory, func() (err error) {
		r.server, err = serve(o.Criu, o.Stdio, files...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Pid is criu's. Who wants its tasks in cgroups puts it there before Restore.
func (r *Restorer) Pid() int { return r.server.cmd.Process.Pid }

// Close ends a criu that has not been told to restore anything. It is idempotent.
func (r *Restorer) Close() {
	if r.server != nil {
		// It would complain, on its stderr, that nobody tells it anything.
		r.server.kill()  //nolint:errcheck // it may have ended
		r.server.close() //nolint:errcheck // it has done nothing
		r.server = nil
	}
}

// inheritBase is the first descriptor number that Inherit files have in criu:
// 0-2 are stdio, 3 is the RPC socket.
const inheritBase = 4

// Restore brings back the tree saved in o.Images and returns the pid of its
// init, a child of the calling process. On an error nothing is left running:
// CRIU kills what it had restored. It ends the criu, and closes the restorer.
func (r *Restorer) Restore(ctx context.Context, o RestoreOptions) (int, *Stats, error) {
	defer r.Close()
	opts, closeDirs, err := o.options(RestoreLog)
	if err != nil {
		return 0, nil, err
	}
	defer closeDirs()
	if o.ImagesDir != nil {
		opts.ImagesDirFd = new(int32(o.ImagesDir.Fd()))
	}
	opts.RstSibling = new(true)
	if o.LSMProfile != "" {
		opts.LsmProfile = &o.LSMProfile
	}
	if o.LSMMountContext != "" {
		opts.LsmMountContext = &o.LSMMountContext
	}
	if o.Lazy {
		opts.LazyPages = new(true)
	}
	opts.EvasiveDevices = new(true)
	for _, v := range o.Veths {
		opts.Veths = append(opts.Veths, &rpc.CriuVethPair{IfIn: new(v.Inner), IfOut: new(v.Outer)})
	}
	for _, j := range o.Join {
		path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), j.File.Fd())
		opts.JoinNs = append(opts.JoinNs, &rpc.JoinNamespace{Ns: new(j.Kind), NsFile: new(path)})
	}
	opts.InheritFd, opts.ConfigFile = r.inherit, r.config
	for _, c := range o.Cgroups {
		opts.CgRoot = append(opts.CgRoot, &rpc.CgroupRoot{Ctrl: new(c.Controller), Path: new(c.Path)})
	}
	log := filepath.Join(o.Work, RestoreLog)
	pid, err := r.ask(ctx, opts, o.Stage, stallWatch{every: stallLook, log: log, tell: o.Stalled})
	if err != nil {
		return 0, nil, explain("restore", log, err)
	}
	s, err := readStats(o.Work, false)
	if err != nil {
		// The guest runs; numbers are not worth killing it for.
		s = &Stats{}
	}
	return pid, s, nil
}

// ask has criu restore, and ends it.
func (r *Restorer) ask(ctx context.Context, opts *rpc.CriuOpts, stage func(Stage) error, watch stallWatch) (pid int, retErr error) {
	init, running := 0, false // as CRIU's stages tell
	s := r.server
	r.server = nil
	defer func() {
		if err := s.close(); err != nil && retErr == nil && !running {
			retErr = fmt.Errorf("criu: %w", err)
		}
	}()
	defer s.watch(watch)()
	if stage == nil {
		stage = func(Stage) error { return nil }
	}
	resp, err := s.do(ctx, &rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum(), Opts: opts}, func(st Stage) error {
		err := stage(st)
		init = max(init, st.Pid)
		// All that CRIU has to do after this is to let go of the tasks, which
		// the kernel does, too, when it dies.
		running = running || err == nil && st.Name == "pre-resume"
		return err
	})
	var failed *failure
	var refused *refusal
	if running = running && err != nil && !errors.As(err, &failed) && !errors.As(err, &refused); running {
		// CRIU is gone without a word. The tasks have begun to change what the
		// images refer to: to end them now would be to lose them.
		return init, nil
	}
	if err != nil {
		return 0, err
	}
	return int(resp.GetRestore().GetPid()), nil
}
