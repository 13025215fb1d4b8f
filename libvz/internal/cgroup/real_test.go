package cgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// newGroup makes a cgroup2 directory for one test.
func newGroup(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	mount, _, err := Unified()
	if err != nil {
		t.Skip(err)
	}
	return newGroupIn(t, mount)
}

func newGroupIn(t *testing.T, mount string) string {
	t.Helper()
	path := filepath.Join(mount, "vzrun-unit-"+strings.ToLower(rand.Text()[:12]))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(KillAll(ctx, []string{path}), Remove(ctx, path)); err != nil {
			t.Error(err)
		}
	})
	return path
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// startIn starts a process in a cgroup2 directory.
func startIn(t *testing.T, path string, arg ...string) *exec.Cmd {
	t.Helper()
	d, err := os.Open(path)
	must(t, err)
	defer d.Close()
	cmd := exec.Command(arg[0], arg[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
	must(t, cmd.Start())
	done := make(chan struct{})
	// Reaped at once, as init or a shim would.
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return cmd
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, value string, elem ...string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(elem...), []byte(value), 0))
}

func owner(t *testing.T, elem ...string) [2]uint32 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(elem...), &st))
	return [2]uint32{st.Uid, st.Gid}
}

func TestDelegateReal(t *testing.T) {
	path := newGroup(t)
	for range 2 {
		must(t, Delegate(path, 231072, 231073))
	}
	for file, want := range map[string][2]uint32{
		"": {231072, 231073}, "cgroup.procs": {231072, 231073}, "cgroup.subtree_control": {231072, 231073},
		"cgroup.max.depth": {}, "cgroup.type": {}, "cgroup.kill": {}, "cgroup.freeze": {},
	} {
		if got := owner(t, path, file); got != want {
			t.Errorf("%s belongs to %d, want %d", file, got, want)
		}
	}
	if got, _ := os.ReadFile(path + "/cgroup.max.descendants"); string(got) != "10000\n" {
		t.Errorf("cgroup.max.descendants is %q", got)
	}
	for _, id := range []int{-1, 1<<32 - 1} {
		if Delegate(path, id, 0) == nil {
			t.Errorf("id %d was taken", id)
		}
	}
	if err := Delegate(path+"/none", 0, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no cgroup: %v", err)
	}
}

func TestMoveReal(t *testing.T) {
	from, to := newGroup(t), newGroup(t)
	stays, goes := startIn(t, from, "sleep", "100"), startIn(t, from, "sleep", "100")
	must(t, Move(from, to, func(pid int) bool { return pid == goes.Process.Pid }))
	for path, want := range map[string]int{from: stays.Process.Pid, to: goes.Process.Pid} {
		if got, err := os.ReadFile(path + "/cgroup.procs"); err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(want) {
			t.Errorf("%s has %q (%v), want %d", path, got, err, want)
		}
	}
	if err := Move(from, to+"/none", func(int) bool { return true }); err == nil {
		t.Error("moved to a cgroup that is not there")
	}
}

func TestRefusesWhatIsNoCgroup(t *testing.T) {
	mount, _, err := Unified()
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	for _, path := range []string{mount, "/", "", "relative", mount + "/../unified", dir, mount + "/"} {
		ctx := deadline(t, time.Second)
		for what, err := range map[string]error{
			"KillAll": KillAll(ctx, []string{path}), "Remove": Remove(ctx, path),
			"Delegate": Delegate(path, 1, 1), "Create": Tree{}.Create(path, CreateOptions{}),
		} {
			if !errors.Is(err, ErrNotCgroup) {
				t.Errorf("%s(%q): %v", what, path, err)
			}
		}
	}
	link := filepath.Join(dir, "link")
	must(t, os.Symlink(newGroup(t), link))
	if err := Remove(deadline(t, time.Second), link); !errors.Is(err, unix.ELOOP) {
		t.Errorf("link: %v", err)
	}
}

func TestSaveCreate(t *testing.T) {
	from, to := newGroup(t), newGroup(t)
	must(t, Delegate(from, 100000, 200000))
	for _, dir := range []string{"init.scope", "user.slice/user@1000.service/app", "odd \xff%name", "t/threads"} {
		must(t, os.MkdirAll(filepath.Join(from, dir), 0o755))
	}
	must(t, filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Count(path, "/") > strings.Count(from, "/")+1 || d.IsDir() && path != from {
			err = os.Lchown(path, 100000, 200000)
		}
		return err
	}))
	user := from + "/user.slice/user@1000.service"
	must(t, os.Chown(user, 101000, 201000))
	must(t, os.Chown(user+"/cgroup.procs", 101000, 201000))
	must(t, os.Chmod(user, 0o700))
	must(t, os.Chmod(user+"/cgroup.procs", 0o664))
	must(t, os.Chown(from+"/init.scope", 1, 1)) // not one of the guest's
	must(t, unix.Setxattr(user, "user.invocation_id", []byte("abc"), 0))
	write(t, "threaded", from, "t/threads/cgroup.type")
	write(t, "7", from, "user.slice/cgroup.max.descendants")
	write(t, "1", from, "user.slice/cgroup.freeze")

	maps := func(host uint32) []specs.LinuxIDMapping { return []specs.LinuxIDMapping{{HostID: host, Size: 65536}} }
	tree, err := Save(from, maps(100000), maps(200000))
	must(t, err)
	o := CreateOptions{UIDs: maps(300000), GIDs: maps(400000)}
	for range 2 {
		must(t, tree.Create(to, o))
	}
	must(t, tree.Refreeze(to))
	again, err := Save(to, o.UIDs, o.GIDs)
	must(t, err)
	sortTree(&tree)
	sortTree(&again)
	if !reflect.DeepEqual(tree, again) {
		t.Errorf("saved   %+v\ncreated %+v", tree, again)
	}
	for file, want := range map[string][2]uint32{
		"": {300000, 400000}, "cgroup.procs": {300000, 400000}, "cgroup.max.depth": {}, "init.scope": {},
		"user.slice/cgroup.type":                   {300000, 400000},
		"user.slice/user@1000.service":             {301000, 401000},
		"user.slice/user@1000.service/cgroup.kill": {300000, 400000},
	} {
		if got := owner(t, to, file); got != want {
			t.Errorf("%s belongs to %d, want %d", file, got, want)
		}
	}
	if got, _ := os.ReadFile(to + "/t/cgroup.type"); string(got) != "domain threaded\n" {
		t.Errorf("t/cgroup.type is %q", got)
	}
}

func sortTree(t *Tree) {
	slices.SortFunc(t.Children, func(a, b Tree) int { return strings.Compare(string(a.Name), string(b.Name)) })
	for i := range t.Children {
		sortTree(&t.Children[i])
	}
}

// A guest that nothing limited is refused by Save, and can still be removed.
func TestTooDeep(t *testing.T) {
	path := newGroup(t)
	deep := path + strings.Repeat("/d", MaxDepth+2)
	must(t, os.MkdirAll(deep, 0o755))
	if _, err := Save(path, nil, nil); !errors.Is(err, ErrTooBig) {
		t.Errorf("Save: %v", err)
	}
	must(t, Remove(t.Context(), path))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	must(t, Remove(t.Context(), path))
}

func TestDelegateBoundsTheGuest(t *testing.T) {
	path := newGroup(t)
	must(t, Delegate(path, 1, 1))
	must(t, os.MkdirAll(path+strings.Repeat("/d", MaxDepth), 0o755))
	if err := os.Mkdir(path+strings.Repeat("/d", MaxDepth+1), 0o755); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("one level more: %v", err)
	}
	if _, err := Save(path, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestKillAll(t *testing.T) {
	path := newGroup(t)
	must(t, os.MkdirAll(path+"/a/b", 0o755))
	outside := startIn(t, newGroup(t), "sleep", "1000")
	want := []int{
		startIn(t, path, "sleep", "1000").Process.Pid,
		startIn(t, path+"/a/b", "sleep", "1000").Process.Pid,
		startIn(t, path+"/a", "sh", "-c", "while :; do sleep 1000 & wait; done").Process.Pid,
	}
	pids, err := Procs(path)
	must(t, err)
	for _, pid := range want {
		if !slices.Contains(pids, pid) {
			t.Errorf("%d is not in %v", pid, pids)
		}
	}
	must(t, KillAll(deadline(t, 20*time.Second), []string{path, path + "/none"}))
	if pids, err := Procs(path); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
	if err := outside.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process outside: %v", err)
	}
	must(t, KillAll(t.Context(), nil))
}

func TestKillAllRefusesItsCaller(t *testing.T) {
	mount, _, err := Unified()
	if err != nil {
		t.Skip(err)
	}
	path := newGroup(t)
	must(t, os.Mkdir(path+"/sub", 0o755))
	of, err := Of(0)
	must(t, err)
	pid := fmt.Append(nil, os.Getpid())
	must(t, os.WriteFile(path+"/sub/cgroup.procs", pid, 0))
	t.Cleanup(func() { must(t, os.WriteFile(mount+of[""]+"/cgroup.procs", pid, 0)) })
	if err := KillAll(t.Context(), []string{path}); !errors.Is(err, ErrSelf) {
		t.Fatalf("got %v", err)
	}
}

// The v1 freezer keeps its processes from dying until it is thawed.
func TestKillAllV1(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/sys/fs/cgroup/freezer/cgroup.procs"); err != nil {
		t.Skip("no v1 freezer: ", err)
	}
	freezer, path := newGroupIn(t, "/sys/fs/cgroup/freezer"), newGroup(t)
	must(t, os.Mkdir(freezer+"/sub", 0o755))
	both := startIn(t, path, "sleep", "1000")
	write(t, fmt.Sprint(both.Process.Pid), freezer, "sub/cgroup.procs")
	only := exec.Command("sleep", "1000")
	must(t, only.Start())
	write(t, fmt.Sprint(only.Process.Pid), freezer, "cgroup.procs")
	reaped := make(chan error)
	go func() { reaped <- only.Wait() }()
	write(t, "FROZEN", freezer, "sub/freezer.state")
	ctx := deadline(t, 20*time.Second)
	must(t, KillAll(ctx, []string{path, freezer}))
	<-reaped
	must(t, Remove(ctx, freezer))
}

// systemd removes the cgroups of units by itself.
func TestRemoveBesideAnother(t *testing.T) {
	for range 50 {
		path := newGroup(t)
		for _, sub := range []string{"a/b", "c", "d"} {
			must(t, os.MkdirAll(path+"/"+sub, 0o755))
		}
		done := make(chan error)
		for range 2 {
			go func() { done <- Remove(deadline(t, 20*time.Second), path) }()
		}
		must(t, errors.Join(<-done, <-done))
	}
}

func TestRemoveWaits(t *testing.T) {
	path := newGroup(t)
	must(t, os.MkdirAll(path+"/a/b", 0o755))
	cmd := startIn(t, path+"/a/b", "sleep", "1000")
	err := Remove(deadline(t, 50*time.Millisecond), path)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("a process in it: %v", err)
	}
	done := make(chan error)
	ctx := deadline(t, 20*time.Second)
	go func() { done <- Remove(ctx, path) }()
	must(t, cmd.Process.Kill())
	must(t, <-done)
}

// The guest goes on making and removing cgroups while it is looked at.
func TestRaces(t *testing.T) {
	path := newGroup(t)
	must(t, Delegate(path, 0, 0))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			a := fmt.Sprintf("%s/a%d", path, i%7)
			_ = os.MkdirAll(a+"/b/c", 0o755)
			for _, dir := range []string{"/b/c", "/b", ""} {
				_ = os.Remove(a + dir)
			}
		}
	}()
	for range 300 {
		if _, err := Save(path, nil, nil); err != nil {
			t.Fatalf("Save: %v", err)
		}
		if _, err := Procs(path); err != nil {
			t.Fatalf("Procs: %v", err)
		}
	}
	cancel()
	<-done
	must(t, Remove(t.Context(), path))
}

// A root with processes cannot enable controllers, unless they are moved.
func TestCreateAside(t *testing.T) {
	mount, _, err := Unified()
	if err != nil {
		t.Skip(err)
	}
	// hugetlb does nothing until it is given a limit, so it can be enabled
	// for a moment at the top.
	top := mount + "/cgroup.subtree_control"
	controllers, err := os.ReadFile(top)
	must(t, err)
	if !slices.Contains(strings.Fields(string(controllers)), "hugetlb") {
		if err := os.WriteFile(top, []byte("+hugetlb"), 0); err != nil {
			t.Skip(err)
		}
		// Registered first, hence run last, when nothing uses it any more.
		t.Cleanup(func() { must(t, os.WriteFile(top, []byte("-hugetlb"), 0)) })
	}
	path, aside := newGroup(t), newGroup(t)
	cmd := startIn(t, path, "sleep", "1000")
	tree := Tree{
		Control:  []string{"hugetlb"},
		Children: []Tree{{Name: "a", Limits: map[string]string{"hugetlb.2MB.max": "4194304"}}},
	}
	if err := tree.Create(path, CreateOptions{}); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("with processes in the root: %v", err)
	}
	must(t, tree.Create(path, CreateOptions{Aside: aside + "/new"}))
	if pids, err := Procs(aside); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("aside: %v, %v", pids, err)
	}
	again, err := Save(path, nil, nil)
	must(t, err)
	if !slices.Equal(again.Control, tree.Control) || again.Children[0].Limits["hugetlb.2MB.max"] != "4194304" {
		t.Errorf("created %+v", again)
	}
	tree.Control = []string{"nonesuch"}
	if err := tree.Create(path, CreateOptions{}); !errors.Is(err, ErrController) {
		t.Errorf("no such controller: %v", err)
	}
}

// What is frozen is found with any name, and the root's own state is not touched.
func TestFreeze(t *testing.T) {
	path := newGroup(t)
	for _, dir := range []string{"a/below", "odd \xff%name", "runs"} {
		must(t, os.MkdirAll(filepath.Join(path, dir), 0o755))
	}
	write(t, "1", path, "a/below/cgroup.freeze")
	write(t, "1", path, "odd \xff%name/cgroup.freeze")
	names, err := Frozen(path)
	must(t, err)
	slices.Sort(names)
	want := []string{"a/below", "odd \xff%name"}
	if !slices.Equal(names, want) {
		t.Fatalf("Frozen = %q, want %q", names, want)
	}
	must(t, Thaw(path, names))
	if left, err := Frozen(path); err != nil || len(left) > 0 {
		t.Errorf("after Thaw: %q, %v", left, err)
	}
	must(t, os.Remove(filepath.Join(path, "a/below")))
	must(t, Freeze(path, names))
	left, err := Frozen(path)
	must(t, err)
	if !slices.Equal(left, want[1:]) {
		t.Errorf("after Freeze: %q, want %q", left, want[1:])
	}
	if _, err := Frozen("/"); !errors.Is(err, ErrNotCgroup) {
		t.Errorf("Frozen of no cgroup: %v", err)
	}
}
