package libvz

import (
	"encoding/json"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/bpfcache"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// filtersName is the folder of compiled seccomp programs, beside the records of
// the store.
const filtersName = "seccomp"

// BecomeInit turns the process into a container's first one, or into one that
// Exec starts. It never returns. A program that uses Create or Exec calls it
// before anything else when its first argument is "init": that is how libvz
// starts it again (and it imports libcontainer/nsenter).
func BecomeInit() {
	if fd, ok := lastInherited(os.Getenv); ok {
		bpfcache.Adopt(fd)
	}
	hearAll()
	libcontainer.Init()
}

// hearAll sees to it that the program begins with no signal ignored: a shell that
// starts vzrun in the background of a script, or nohup(1), has some ignored, Go
// leaves it at that for these two, and execve(2) hands it on. A handler ends with
// execve, in the default.
func hearAll() {
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// lastInherited returns the descriptor that is the last of Process.ExtraFiles,
// if there is one: libcontainer's own follow, a console's socket before all.
func lastInherited(getenv func(string) string) (int, bool) {
	for _, name := range []string{"_LIBCONTAINER_CONSOLE", "_LIBCONTAINER_INITPIPE"} {
		if n, err := strconv.Atoi(getenv(name)); err == nil {
			return n - 1, n > 3
		}
	}
	return 0, false
}

// filterTicket gives the process a ticket for the seccomp program of the
// container, and returns it, nil where there is none. A process that nobody
// else shares the container with may fill it in (learn). Without one the program is
// compiled, so that nothing is worth an error.
func (h *Host) filterTicket(p *libcontainer.Process, config *configs.Seccomp, learn bool) *bpfcache.Ticket {
	if config == nil || !bpfcache.Enabled {
		return nil
	}
	source, err := filterSource(config)
	if err != nil {
		return nil
	}
	t, err := bpfcache.Open(filepath.Join(h.opts.Root, store.DirName, filtersName)).Ticket(source)
	if err != nil {
		return nil
	}
	if !t.Filled && !learn {
		t.Close()
		return nil
	}
	p.ExtraFiles = append(p.ExtraFiles[:len(p.ExtraFiles):len(p.ExtraFiles)], t.File)
	return t
}

// filterSource is all that decides about what libseccomp returns: the profile
// and libseccomp itself. The kernel stays the same for as long as the folder is
// there (Options.Root).
func filterSource(config *configs.Seccomp) ([]byte, error) {
	rules := *config
	rules.ListenerPath, rules.ListenerMetadata = "", ""
	major, minor, micro := seccomp.Version()
	return json.Marshal(struct {
		Libseccomp [3]uint
		Profile    *configs.Seccomp
	}{[3]uint{major, minor, micro}, &rules})
}
