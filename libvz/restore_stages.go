package libvz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

func (r *revival) criuStarted(pid int) error {
	start, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	r.entry.Operation.Criu, r.entry.Operation.CriuStart = pid, start
	return r.entry.Save()
}

// warnStalled returns what is to be told of a CRIU that does nothing.
func (h *Host) warnStalled(id string) func(criu.Stall) {
	return func(s criu.Stall) { h.warn(id, "%v", s) }
}

// abortGrace is how long a cancelled restore may go on until CRIU asks for
// consent, and learns that there is none.
const abortGrace = 10 * time.Second

// abortAfter ends a restore that is cancelled and does not come to its next
// stage: damaged images can make a task that restores itself run in circles.
// criu is in the container's cgroups too. The function returned ends the watch.
func (r *revival) abortAfter(ctx context.Context) func() {
	finished := make(chan struct{})
	go func() {
		select {
		case <-finished:
			return
		case <-ctx.Done():
		}
		select {
		case <-finished:
			return
		case <-time.After(abortGrace):
		}
		if r.decided.Load() {
			return
		}
		kill, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		if err := cgroup.KillAll(kill, slices.Collect(maps.Values(r.cgroups))); err != nil {
			r.host.warn(r.id, "restore is stuck: %v", err)
		}
	}()
	return func() { close(finished) }
}

// untilMemoryFails returns a context that ends with ctx, and when memory that a task may
// be waiting for will not come: CRIU waits for that task.
func (r *revival) untilMemoryFails(ctx context.Context) (context.Context, func()) {
	ctx, end := context.WithCancel(ctx)
	if r.lazy != nil {
		lazy := r.lazy
		go func() {
			if lazy.Wait(ctx) != nil {
				end()
			}
		}()
	}
	return ctx, end
}

// joinCgroups makes the container's cgroups, puts criu into them (what it
// restores is born there), tells it of them, and makes the guest's own subtree again.
func (r *revival) joinCgroups(pid int) error {
	if l := r.manifest.Limits; l != nil {
		if err := applyResources(r.config.Cgroups.Resources, l); err != nil {
			return fmt.Errorf("set limits: %w", err)
		}
	}
	cm, err := manager.New(r.config.Cgroups)
	if err != nil {
		return err
	}
	if err := cm.Apply(pid); err != nil {
		return fmt.Errorf("join cgroups: %w", err)
	}
	if err := cm.Set(r.config.Cgroups.Resources); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	r.subtree = cm.Path("")
	if !cgroups.IsCgroup2UnifiedMode() {
		if err := r.growCgroups(); err != nil {
			return err
		}
	}
	paths, err := cgroup.Of(pid)
	if err != nil {
		return err
	}
	for ctrl, p := range paths {
		r.opts.Cgroups = append(r.opts.Cgroups, criu.CgroupRoot{Controller: ctrl, Path: p})
	}
	return nil
}

// asideKey is where an operation notes the cgroup that criu was moved to. No
// controller has that name.
const asideKey = "criu"

// growCgroups makes the guest's cgroup2 subtree again.
//
// On a hybrid host that is done before CRIU works. On a pure cgroup2 host it
// cannot be: criu is in the container's cgroup then, and a cgroup with
// processes gives no controllers to others (cgroup-v2.rst, "No Internal
// Process Constraint"). There it is done when the namespaces are set up and
// before any task looks for its cgroup's files; what is in the container's
// cgroup by then is moved aside. Without controllers to give there is no need,
// and what is aside while it is restored has its memory counted there, beyond the
// container's limits.
func (r *revival) growCgroups() error {
	if r.manifest.Cgroups == nil || r.subtree == "" {
		return nil
	}
	o := cgroup.CreateOptions{UIDs: r.spec.Linux.UIDMappings, GIDs: r.spec.Linux.GIDMappings}
	if cgroups.IsCgroup2UnifiedMode() && len(r.manifest.Cgroups.Control) > 0 {
		aside := asideOf(r.subtree)
		if err := ownCgroups(map[string]string{asideKey: aside}); err != nil {
			return err
		}
		r.aside = aside
		r.entry.Operation.Cgroups[asideKey] = aside
		if err := r.entry.Save(); err != nil {
			return err
		}
		o.Aside = r.aside
	}
	if err := r.manifest.Cgroups.Create(r.subtree, o); err != nil {
		return fmt.Errorf("make the guest's cgroups again: %w", err)
	}
	return nil
}

// asideOf is the cgroup beside a container's in which criu works. No id has such a name
// (CheckID): an undo ends whatever is in it.
func asideOf(subtree string) string { return subtree + "@criu" }

// comeBack brings the guest's processes that are still aside into the container's
// cgroup: those that were in no other when they were saved. CRIU moves the rest.
// There are such where the guest had controllers that bear processes beside
// cgroups (threaded ones, cgroup-v2.rst).
func (r *revival) comeBack(init int) error {
	if r.aside == "" {
		return nil
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		return fmt.Errorf("restored init: %w", err)
	}
	return cgroup.Move(r.aside, r.subtree, func(pid int) bool {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		return err == nil && ns == own
	})
}

// leaveAside removes the cgroup in which criu worked. criu has ended.
func (r *revival) leaveAside(ctx context.Context) error {
	if r.aside == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	return cgroup.Remove(ctx, r.aside)
}

// stage is asked by CRIU for consent.
func (r *revival) stage(s criu.Stage) error {
	asked := time.Now()
	defer func() { r.waited += time.Since(asked) }()
	switch s.Name {
	case "setup-namespaces":
		return r.setupNamespaces(s.Pid)
	case "post-setup-namespaces":
		if err := r.bringLinks(); err != nil {
			return err
		}
		if cgroups.IsCgroup2UnifiedMode() {
			return r.growCgroups()
		}
	case "post-restore":
		r.pid = s.Pid
		if err := r.comeBack(s.Pid); err != nil {
			return err
		}
		if r.clone != nil {
			if err := r.becomeClone(s.Pid); err != nil {
				return err
			}
		}
		if err := r.attachLinks(); err != nil {
			return err
		}
		if err := r.announceNetwork(s.Pid); err != nil {
			return err
		}
		if err := r.writeState(s.Pid); err != nil {
			return err
		}
		return r.decide(s.Pid)
	case "pre-resume":
		r.rearm()
		r.refreeze()
	case "orphan-pts-master":
		return r.sendTerminal(s.File)
	}
	return nil
}

// decide lets the guest run: from here on nobody's wish to stop counts.
func (r *revival) decide(init int) error {
	r.decided.Store(true)
	err := func() error {
		if r.lazy != nil {
			// It would run, and be ended for the memory that it lacks.
			if err := r.lazy.Failure(); err != nil {
				return err
			}
		}
		if r.consent != nil {
			if err := r.consent(init); err != nil {
				return err
			}
		}
		if r.lazy != nil {
			return r.memoryArrives()
		}
		r.host.keepMade(r.entry.Operation)
		return r.entry.Step(stepCommitted)
	}()
	if err != nil {
		r.decided.Store(false)
	}
	return err
}

// setupNamespaces sets what CRIU does not save of a network namespace, and
// runs the hooks that engines rely on to wire it.
func (r *revival) setupNamespaces(pid int) error {
	if err := setNetSysctls(pid, r.spec.Linux.Sysctl); err != nil {
		return err
	}
	hooks := r.config.Hooks
	if hooks == nil {
		return nil
	}
	state := r.ociState(pid)
	return onHost(func() error {
		for _, kind := range []configs.HookName{configs.Prestart, configs.CreateRuntime} { //nolint:staticcheck // engines still use prestart
			if err := hooks.Run(kind, state); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeState leaves the file by which libcontainer knows a running container,
// so that every later verb finds the restored one as if it had been created.
func (r *revival) writeState(pid int) error {
	cm, err := manager.New(r.config.Cgroups)
	if err != nil {
		return err
	}
	start, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("restored init: %w", err)
	}
	config := *r.config
	// CRIU restores into a time namespace, so that clocks go on where they
	// stood; what is exec'ed later is to see the same clocks.
	if configs.IsNamespaceSupported(configs.NEWTIME) && !config.Namespaces.Contains(configs.NEWTIME) {
		config.Namespaces = append(slices.Clone(config.Namespaces), configs.Namespace{Type: configs.NEWTIME})
	}
	st := libcontainer.State{
		BaseState: libcontainer.BaseState{
			ID: r.id, InitProcessPid: pid, InitProcessStartTime: start, Created: time.Now().UTC(), Config: config,
		},
		CgroupPaths:         cm.GetPaths(),
		NamespacePaths:      map[configs.NamespaceType]string{},
		ExternalDescriptors: r.manifest.Stdio,
	}
	for _, t := range configs.NamespaceTypes() {
		if configs.IsNamespaceSupported(t) {
			ns := configs.Namespace{Type: t}
			st.NamespacePaths[t] = ns.GetPath(pid)
		}
	}
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return store.WriteState(filepath.Join(r.host.opts.Root, r.id, "state.json"), data, 0o600)
}

// ociState is what hooks are told of a container that is being restored.
func (r *revival) ociState(pid int) *specs.State {
	return &specs.State{
		Version: specs.Version, ID: r.id, Status: specs.StateCreating, Pid: pid,
		Bundle: r.bundle, Annotations: r.spec.Annotations,
	}
}

// sendTerminal hands the master of the init's restored terminal to who asked
// for it.
func (r *revival) sendTerminal(master *os.File) error {
	socket := r.options.ConsoleSocket
	if master == nil {
		return errors.New("criu sent no terminal")
	}
	if socket == nil && IsSystem(r.spec) {
		// As if its holder had been killed: a guest lives without a console.
		r.host.warn(r.id, "the guest's console is hung up, as nobody holds it: restore with --console keeps it")
		return nil
	}
	if socket == nil {
		return withHint("use --console-socket, or restore in the foreground", "the container has a terminal and nobody is there to take it")
	}
	rights := unix.UnixRights(int(master.Fd()))
	if err := unix.Sendmsg(int(socket.Fd()), []byte(master.Name()), rights, nil, 0); err != nil {
		return fmt.Errorf("send terminal: %w", err)
	}
	return nil
}
