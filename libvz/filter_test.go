package libvz

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/bpfcache"
)

// filterProfile forbids mkdir, with an error that nothing else returns.
func filterProfile() *configs.Seccomp {
	code := uint(unix.EXDEV)
	call := func(name string) *configs.Syscall {
		return &configs.Syscall{Name: name, Action: configs.Errno, ErrnoRet: &code}
	}
	return &configs.Seccomp{
		DefaultAction: configs.Allow, Architectures: []string{"amd64", "x86"},
		Syscalls: []*configs.Syscall{call("mkdir"), call("mkdirat")},
	}
}

// TestMain lets the test program start itself as a process that loads a filter.
func TestMain(m *testing.M) {
	if os.Getenv("VZRUN_TEST_FILTER") != "" {
		os.Exit(loadFilter())
	}
	os.Exit(m.Run())
}

// loadFilter exits with 0 if the filter does what the profile says.
func loadFilter() int {
	runtime.LockOSThread()
	if fd, ok := lastInherited(os.Getenv); ok {
		bpfcache.Adopt(fd)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 10
	}
	if _, err := seccomp.InitSeccomp(filterProfile()); err != nil {
		os.Stderr.WriteString(err.Error()) //nolint:errcheck // the code says it, too
		return 11
	}
	if err := os.Mkdir("/proc/nowhere", 0o700); !errors.Is(err, unix.EXDEV) {
		return 12
	}
	return 0
}

func TestFilterIsCompiledOnce(t *testing.T) {
	if !bpfcache.Enabled {
		t.Skip("built without libseccomp")
	}
	h, err := Open(Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(h.opts.Root, "@", filtersName)
	load := func(learn bool) *bpfcache.Ticket {
		t.Helper()
		p := &libcontainer.Process{}
		ticket := h.filterTicket(p, filterProfile(), learn)
		cmd := exec.Command("/proc/self/exe")
		cmd.ExtraFiles = p.ExtraFiles
		// As libcontainer numbers its own: after the inherited ones.
		cmd.Env = []string{"VZRUN_TEST_FILTER=1", "_LIBCONTAINER_INITPIPE=3"}
		if ticket != nil {
			cmd.Env[1] = "_LIBCONTAINER_INITPIPE=4"
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("filter: %v: %s", err, out)
		}
		return ticket
	}
	programs := func() (all [][]byte) {
		paths, _ := filepath.Glob(folder + "/*")
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, data)
		}
		return all
	}

	if ticket := load(false); ticket != nil {
		t.Fatal("one that may not learn got an empty ticket")
	}
	first := load(true)
	if first == nil || first.Filled {
		t.Fatalf("first ticket: %+v", first)
	}
	if err := first.Keep(); err != nil {
		t.Fatal(err)
	}
	first.Close()
	compiled := programs()
	if len(compiled) != 1 || len(compiled[0])%8 != 0 {
		t.Fatalf("kept: %x", compiled)
	}
	for range 2 {
		next := load(false)
		if next == nil || !next.Filled {
			t.Fatalf("second ticket: %+v", next)
		}
		if err := next.Keep(); err != nil {
			t.Fatal(err)
		}
		next.Close()
	}
	if again := programs(); len(again) != 1 || !bytes.Equal(again[0], compiled[0]) {
		t.Fatalf("changed: %x", again)
	}
	// A damaged one is compiled again.
	paths, _ := filepath.Glob(folder + "/*")
	if err := os.WriteFile(paths[0], append(bytes.Clone(compiled[0][:len(compiled[0])-1]), 'x'), 0o600); err != nil {
		t.Fatal(err)
	}
	repaired := load(true)
	if repaired == nil || repaired.Filled {
		t.Fatalf("ticket after damage: %+v", repaired)
	}
	if err := repaired.Keep(); err != nil {
		t.Fatal(err)
	}
	repaired.Close()
	if again := programs(); len(again) != 1 || !bytes.Equal(again[0], compiled[0]) {
		t.Fatalf("after damage: %x", again)
	}
}

func TestLastInherited(t *testing.T) {
	for name, c := range map[string]struct {
		env map[string]string
		fd  int
		ok  bool
	}{
		"none":         {map[string]string{"_LIBCONTAINER_INITPIPE": "3"}, 2, false},
		"one":          {map[string]string{"_LIBCONTAINER_INITPIPE": "4"}, 3, true},
		"console":      {map[string]string{"_LIBCONTAINER_CONSOLE": "5", "_LIBCONTAINER_INITPIPE": "6"}, 4, true},
		"console only": {map[string]string{"_LIBCONTAINER_CONSOLE": "3", "_LIBCONTAINER_INITPIPE": "4"}, 2, false},
		"nonsense":     {map[string]string{"_LIBCONTAINER_INITPIPE": "x"}, 0, false},
	} {
		if fd, ok := lastInherited(func(name string) string { return c.env[name] }); fd != c.fd || ok != c.ok {
			t.Errorf("%s: %d, %v", name, fd, ok)
		}
	}
}
