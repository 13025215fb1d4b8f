package libvz

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// Whoever follows the migrations of a host has a socket in one directory, and each
// process at work on one writes what happens to all that are there. Nothing is kept,
// and nobody waits for a follower that is slow.

// followersDir is that directory, beside the journal.
const followersDir = "followers"

// What happens to a migration, in the order in which it does.
const (
	MigrationBegins    = "begin"
	MigrationStep      = "step"
	MigrationWarning   = "warning"
	MigrationCommitted = "committed" // the guest runs at the destination
	MigrationEnds      = "end"       // it needs the source no more
	MigrationFails     = "failure"
)

// MigrationEvent is something that happens to a migration, as one of its hosts sees
// it; docs/migration.md describes the form.
type MigrationEvent struct {
	Time time.Time `json:"time"`
	Type string    `json:"type"` // "migration"
	// ID is the container's at this host, Migration the same at both hosts.
	ID        string `json:"id"`
	Migration string `json:"migration"`
	Role      string `json:"role"` // source or destination
	Event     string `json:"event"`
	Mode      string `json:"mode,omitempty"`
	Target    string `json:"target,omitempty"`
	Step      string `json:"step,omitempty"`
	Done      int64  `json:"done,omitempty"`
	Total     int64  `json:"total,omitempty"`
	Warning   string `json:"warning,omitempty"`
	Error     string `json:"error,omitempty"`
	// Unconfirmed: after a failure it is not known where it runs.
	Unconfirmed bool            `json:"unconfirmed,omitempty"`
	Stats       *MigrationStats `json:"stats,omitempty"`
}

// MigrationStats is what a migration took.
type MigrationStats struct {
	ID    string  `json:"id"`
	NewID string  `json:"new_id"`
	Mode  string  `json:"mode"`
	Check []Check `json:"checks"` // what the other side looked at, before all else
	// Frozen is how long the guest ran nowhere, Run the time from the call
	// to the moment at which it ran there, Total the whole: in seconds. Zero
	// after a dry run.
	Frozen float64 `json:"frozen"`
	Run    float64 `json:"run"`
	Total  float64 `json:"total"`
	// What Frozen consists of, in seconds. Images and rootfs go at the same
	// time.
	Dump     float64 `json:"dump"`
	Transfer float64 `json:"transfer"`
	Restore  float64 `json:"restore"`
	// Images and Rootfs are bytes sent: the images' (memory for the most
	// part), and the root file system's as rsync sends it.
	Images int64 `json:"images_bytes"`
	Rootfs int64 `json:"rootfs_bytes"`
	// FilePasses is how often the files were gone through while the guest ran.
	FilePasses int `json:"file_passes"`
	// Sent is what all of it came to on the connection, compressed or not.
	Sent int64 `json:"sent_bytes"`
	// Memory is what was sent in mode lazy after the guest ran there, Pull
	// how many seconds that took.
	Memory int64   `json:"memory_bytes"`
	Pull   float64 `json:"pull"`
	// Faults are the guest's waits for memory there; nil = not known.
	Faults *FaultStats `json:"faults,omitempty"`
	// LinksLost is how often the connection was lost meanwhile and made again,
	// LinkDown for how many seconds there was none.
	LinksLost int     `json:"links_lost"`
	LinkDown  float64 `json:"link_down"`
	Pages     uint64  `json:"pages"`
	Tasks     int     `json:"tasks"`
	// Rounds are those of modes pre-copy and hybrid; what was left when the guest
	// was stopped is in Images and Pages.
	Rounds []Round `json:"rounds,omitempty"`
}

// Check is one thing that the other side looked at before a migration.
type Check struct {
	What string `json:"what"`
	// Here is what the source has or needs, There what the destination has.
	Here  string `json:"here"`
	There string `json:"there"`
	OK    bool   `json:"ok"`
	Hint  string `json:"hint,omitempty"`
}

// FaultStats are how long the tasks of a guest waited for memory that they touched
// before it was there, in seconds: see docs/migration.md.
type FaultStats = criu.FaultStats

// FollowMigrations calls fn with what happens to migrations of this host, from now
// on and one after the other, until ctx ends (nil) or fn returns an error. What
// happens faster than fn takes it may be left out.
func (h *Host) FollowMigrations(ctx context.Context, fn func(MigrationEvent) error) error {
	return fail("events", "", h.follow(ctx, fn))
}

func (h *Host) follow(ctx context.Context, fn func(MigrationEvent) error) error {
	path := h.followers()
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	defer os.Remove(path) // if nobody else has a socket there
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	name := make([]byte, 8)
	if _, err := rand.Read(name); err != nil {
		return err
	}
	at := inDir(dir, hex.EncodeToString(name))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("socket of a follower: %w", err)
	}
	defer os.Remove(at)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a socket can
	defer stop()
	buffer := make([]byte, maxMigrationEvent)
	for {
		n, _, err := conn.ReadFromUnix(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var e MigrationEvent
		if err := json.Unmarshal(buffer[:n], &e); err != nil {
			continue // of another version
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// maxMigrationEvent is more than the longest, which has statistics with all checks.
const maxMigrationEvent = 128 << 10

func (h *Host) followers() string { return filepath.Join(h.opts.Root, store.DirName, followersDir) }

// announcer tells followers of one migration.
type announcer struct {
	host *Host
	mu   sync.Mutex
	base MigrationEvent // what all events have; no id: it has not begun
}

// announced returns a host like h whose events followers hear of, too.
func (h *Host) announced() (*Host, *announcer) {
	a := &announcer{host: h}
	heard := *h
	heard.opts.OnEvent = func(e Event) {
		h.event(e)
		kind := MigrationStep
		if e.Warning != "" {
			kind = MigrationWarning
		}
		a.tell(MigrationEvent{Event: kind, Step: e.Step, Done: e.Done, Total: e.Total, Warning: e.Warning})
	}
	return &heard, a
}

// begin must come first; what is told before is told to nobody.
func (a *announcer) begin(base MigrationEvent, token, mode, target string) {
	// The token is a secret.
	sum := sha256.Sum256([]byte(token))
	base.Type, base.Migration = "migration", hex.EncodeToString(sum[:8])
	a.mu.Lock()
	a.base = base
	a.mu.Unlock()
	a.tell(MigrationEvent{Event: MigrationBegins, Mode: mode, Target: target})
}

// end tells how it ended.
func (a *announcer) end(err error, stats *MigrationStats) {
	if err == nil {
		a.tell(MigrationEvent{Event: MigrationEnds, Stats: stats})
		return
	}
	a.tell(MigrationEvent{Event: MigrationFails, Error: oneLine(err.Error()), Unconfirmed: errors.Is(err, ErrUnconfirmed)})
}

func (a *announcer) tell(e MigrationEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.base.ID == "" {
		return
	}
	dir, err := os.Open(a.host.followers())
	if err != nil {
		return // nobody follows
	}
	defer dir.Close()
	e.Type, e.ID, e.Migration, e.Role = a.base.Type, a.base.ID, a.base.Migration, a.base.Role
	e.Time = time.Now().UTC()
	data, err := json.Marshal(e)
	if err != nil {
		return // of strings and numbers there is none
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		err := sendTo(inDir(dir, name), data, e.Done > 0)
		if errors.Is(err, unix.ECONNREFUSED) {
			unix.Unlinkat(int(dir.Fd()), name, 0) //nolint:errcheck // of a follower that was killed
		}
	}
}

// followerPatience is how long a follower whose queue is full may hold up a
// migration, for an event that is not only one of many.
const followerPatience = 100 * time.Millisecond

// sendTo sends a datagram; one that may be left out does not wait.
func sendTo(path string, data []byte, optional bool) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	flags := unix.MSG_NOSIGNAL
	if optional {
		flags |= unix.MSG_DONTWAIT
	}
	patience := unix.NsecToTimeval(followerPatience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return unix.Sendto(fd, data, flags, &unix.SockaddrUnix{Name: path})
}

// inDir is a path of name in the open directory d that fits into a socket's address.
func inDir(d *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + name
}
