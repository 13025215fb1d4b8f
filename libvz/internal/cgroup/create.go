package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// CreateOptions says how a recorded subtree is made again. The zero value is
// for a guest without a user namespace, in a cgroup without processes.
type CreateOptions struct {
	// UIDs and GIDs are the maps of the user namespace that the guest is
	// going to have. Empty maps stand for none.
	UIDs, GIDs []specs.LinuxIDMapping
	// Aside is another cgroup2 directory, to which the processes in the root
	// are moved first; it is made if only its last element is missing. A
	// cgroup with processes of its own cannot give controllers to others
	// (cgroup-v2.rst, "No Internal Process Constraint"), and at CRIU's
	// post-setup-namespaces notification CRIU's are there. Empty: none are
	// moved, and where they are in the way the error wraps EBUSY.
	Aside string
}

// Create makes the subtree at path as it was recorded: directories, owners,
// modes, controllers, limits and extended attributes. Of the root it makes the
// last element of the path if that is missing (its parents must exist and have
// the controllers enabled), gives the delegated files away like Delegate, and
// leaves the limits to the host. Frozen cgroups are made thawed, since nothing
// could be restored into them: see Refreeze.
//
// Call it before CRIU restores, or, where the root needs controllers enabled,
// at its post-setup-namespaces notification. It is idempotent and adds to what
// exists; after an error, Remove cleans up. It returns ErrInvalid or ErrTooBig
// for a record that Save cannot have made, and ErrController if a controller
// that the guest uses is not available here.
func (t Tree) Create(path string, o CreateOptions) error {
	if err := t.check(); err != nil {
		return err
	}
	d, err := makeRoot2(path)
	if err != nil {
		return fmt.Errorf("create cgroups: %w", err)
	}
	defer d.Close()
	if o.Aside != "" {
		if err := moveAside(d, o.Aside); err != nil {
			return fmt.Errorf("create cgroups: %w", err)
		}
	}
	if err := lowerMax(d); err != nil {
		return fmt.Errorf("create cgroups: %w", err)
	}
	own, err := delegated()
	if err != nil {
		return fmt.Errorf("create cgroups: %w", err)
	}
	c := creator{CreateOptions: o, delegated: own}
	if err := c.create(&t, d, true); err != nil {
		return fmt.Errorf("create cgroups: %w", err)
	}
	return nil
}

// Refreeze freezes the cgroups below path that were frozen when the subtree
// was recorded. Call it when the guest's processes are back. Cgroups that the
// guest has removed since are left out.
func (t Tree) Refreeze(path string) error {
	if err := t.check(); err != nil {
		return err
	}
	d, err := openRoot2(path)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	defer d.Close()
	if err := t.freeze(d); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return nil
}

func (t *Tree) freeze(d *os.File) error {
	for i := range t.Children {
		c := &t.Children[i]
		sub, err := openDir(d, string(c.Name))
		if err == nil {
			if c.Frozen {
				err = writeFile(sub, "cgroup.freeze", "1")
			}
			if err == nil {
				err = c.freeze(sub)
			}
			sub.Close()
		}
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// moveAside empties d of its own processes.
func moveAside(d *os.File, path string) error {
	aside, err := makeRoot2(path)
	if err != nil {
		return err
	}
	defer aside.Close()
	const passes = 100 // a process may fork between the list and the move
	for range passes {
		pids, err := procsIn(d)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			err := writeFile(aside, "cgroup.procs", strconv.Itoa(pid))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d aside: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("move processes of %s aside: %w", d.Name(), unix.EBUSY)
}

// Move moves those of the cgroup2 directory's own processes that belong says yes
// to into another, which must exist. A process that has ended is no error; one
// that was forked meanwhile may stay.
func Move(from, to string, belong func(pid int) bool) error {
	source, err := openRoot2(from)
	if err != nil {
		return fmt.Errorf("move processes: %w", err)
	}
	defer source.Close()
	target, err := openRoot2(to)
	if err != nil {
		return fmt.Errorf("move processes: %w", err)
	}
	defer target.Close()
	pids, err := procsIn(source)
	if err != nil {
		return fmt.Errorf("move processes: %w", err)
	}
	for _, pid := range pids {
		if !belong(pid) {
			continue
		}
		if err := writeFile(target, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %d: %w", pid, err)
		}
	}
	return nil
}

type creator struct {
	CreateOptions
	delegated []string
}

// create brings d into the state of t. The order is the kernel's: a cgroup is
// made threaded before it has children, controllers are enabled before the
// children whose files depend on them, and limits on the number of children
// come after these.
func (c *creator) create(t *Tree, d *os.File, root bool) error {
	if err := makeThreaded(t, d); err != nil {
		return err
	}
	if err := enable(t, d); err != nil {
		return err
	}
	for i := range t.Children {
		if err := c.child(&t.Children[i], d); err != nil {
			return err
		}
	}
	for _, file := range sortedKeys(t.Limits) {
		if root && !slices.Contains(c.delegated, file) {
			continue
		}
		if err := writeFile(d, file, t.Limits[file]); err != nil {
			return fmt.Errorf("set to %q: %w", t.Limits[file], err)
		}
	}
	if root {
		return c.ownRoot(t, d)
	}
	for _, name := range sortedKeys(t.Xattrs) {
		if err := unix.Fsetxattr(int(d.Fd()), name, t.Xattrs[name], 0); err != nil {
			return &os.PathError{Op: "set " + name, Path: d.Name(), Err: err}
		}
	}
	return c.own(t, d)
}

func (c *creator) child(t *Tree, d *os.File) error {
	if err := makeDir(d, string(t.Name)); err != nil {
		return err
	}
	sub, err := openDir(d, string(t.Name))
	if err != nil {
		return err
	}
	defer sub.Close()
	return c.create(t, sub, false)
}

func makeThreaded(t *Tree, d *os.File) error {
	if !t.Threaded {
		return nil
	}
	kind, err := readFile(d, "cgroup.type")
	if err != nil || kind == "threaded" {
		return err
	}
	return writeFile(d, "cgroup.type", "threaded")
}

// enable gives the recorded controllers to the children of d.
func enable(t *Tree, d *os.File) error {
	if len(t.Control) == 0 {
		return nil
	}
	text, err := readFile(d, "cgroup.controllers")
	if err != nil {
		return err
	}
	have := strings.Fields(text)
	for _, controller := range t.Control {
		if !slices.Contains(have, controller) {
			return fmt.Errorf("%w: %s in %s", ErrController, controller, d.Name())
		}
	}
	return writeFile(d, "cgroup.subtree_control", "+"+strings.Join(t.Control, " +"))
}

// ownRoot gives the root to the guest: never more than the delegated files,
// whatever the record says.
func (c *creator) ownRoot(t *Tree, d *os.File) error {
	uid, gid := toHost(c.UIDs, t.Dir.UID), toHost(c.GIDs, t.Dir.GID)
	for _, file := range c.delegated {
		to := t.Files
		if o, ok := t.Differ[file]; ok {
			to = o
		}
		if err := c.ownFile(d, file, to); err != nil {
			return err
		}
	}
	return chownRoot(d, nil, uid, gid)
}

// own gives a cgroup below the root to its recorded owner.
func (c *creator) own(t *Tree, d *os.File) error {
	err := eachEntry(d, func(e os.DirEntry) error {
		if e.IsDir() {
			return nil
		}
		to, ok := t.Differ[e.Name()]
		if !ok {
			to = t.Files
		}
		return c.ownFile(d, e.Name(), to)
	})
	if err != nil {
		return err
	}
	if mode := t.Dir.Mode & 0o1777; mode != 0 && mode != 0o755 {
		if err := unix.Fchmod(int(d.Fd()), mode); err != nil {
			return &os.PathError{Op: "chmod", Path: d.Name(), Err: err}
		}
	}
	return d.Chown(toHost(c.UIDs, t.Dir.UID), toHost(c.GIDs, t.Dir.GID))
}

func (c *creator) ownFile(d *os.File, name string, to Owner) error {
	err := chownFile(d, name, toHost(c.UIDs, to.UID), toHost(c.GIDs, to.GID))
	if err == nil && to.Mode != 0 {
		if e := unix.Fchmodat(int(d.Fd()), name, to.Mode&0o777, 0); e != nil {
			err = &os.PathError{Op: "chmod", Path: d.Name() + "/" + name, Err: e}
		}
	}
	if gone(err) {
		// cgroup.pressure hides files, and not every kernel has them all.
		return nil
	}
	return err
}
