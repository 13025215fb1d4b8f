//go:build !lean

package libvz

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// offer says what is to be moved and what it needs, in the message Offer.
type offer struct {
	Token  string `json:"token"`
	ID     string `json:"id"`
	NewID  string `json:"new_id"`
	Mode   string `json:"mode"`
	DryRun bool   `json:"dry_run,omitempty"`
	Shared bool   `json:"shared,omitempty"`
	// Bundle is the source's path; it counts with Shared.
	Bundle string          `json:"bundle"`
	Config json.RawMessage `json:"config"` // config.json as it is on disk
	// Layers are the templates of a root that is an overlay, the uppermost first.
	Layers []layer     `json:"layers,omitempty"`
	Links  []vnet.Link `json:"links,omitempty"`
	Net    string      `json:"net,omitempty"` // the annotation as it really is
	Veth   []string    `json:"veth,omitempty"`
	// Compress is the method in which streams are to come, "" not to.
	Compress string `json:"compress,omitempty"`
	// LinkTimeout is that of MigrateOptions, in seconds.
	LinkTimeout float64 `json:"link_timeout,omitempty"`

	Arch   string `json:"arch"`
	Kernel string `json:"kernel"`
	Criu   int    `json:"criu"`
	// CPU is what `criu cpuinfo dump` wrote, empty where it writes nothing.
	CPU []byte `json:"cpu,omitempty"`
	// Memory and Disk are bytes that are needed.
	Memory int64 `json:"memory"`
	Disk   int64 `json:"disk"`
}

// answer is the message Answer.
type answer struct {
	Checks []Check `json:"checks"`
	// Missing are the numbers of the layers that must be sent, in order.
	Missing []int `json:"missing,omitempty"`
	// Compress repeats the offer's, where streams may come so.
	Compress string `json:"compress,omitempty"`
}

// agree makes the offer and reads the answer. An error wraps ErrRefused where
// the other side cannot take the container.
func (m *migration) agree(ctx context.Context) error {
	o, err := m.offer(ctx)
	if err != nil {
		return err
	}
	m.stats = &MigrationStats{ID: o.ID, NewID: o.NewID, Mode: o.Mode}
	m.c.host.event(Event{ID: m.c.id, Step: "asking"})
	if err := m.control.Send(wire.Offer, o); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	msg, err := m.control.Receive(waiting)
	if err != nil {
		return err
	}
	var a answer
	if err := msg.Decode(&a); err != nil {
		return err
	}
	m.stats.Check = a.Checks
	for _, c := range a.Checks {
		if !c.OK && !m.o.DryRun {
			return m.giveUp(withHint(c.Hint, "%w by the other side: %s: here %s, there %s", ErrRefused, c.What, c.Here, c.There))
		}
	}
	if m.o.DryRun {
		return nil
	}
	if err := checkMissing(a.Missing, len(m.layers)); err != nil {
		return m.giveUp(err)
	}
	m.missing = a.Missing
	if a.Compress != m.o.Compress {
		return m.giveUp(withHint("leave out --compress, or "+sameVersion, "%w by the other side: it answered nothing about compression", ErrRefused))
	}
	return m.session.SetShape(wire.Shape{Compression: a.Compress, Rate: m.o.Bandwidth})
}

func (m *migration) offer(ctx context.Context) (*offer, error) {
	c, d := m.c, m.plan
	config, err := readConfig(filepath.Join(c.bundle(), "config.json"))
	if err != nil {
		return nil, err
	}
	o := &offer{
		Token: m.token, ID: c.id, NewID: m.o.NewID, Mode: m.o.Mode, DryRun: m.o.DryRun, Shared: m.o.SharedStorage,
		Bundle: c.bundle(), Config: config, Links: d.manifest.Links, Net: d.manifest.Spec.Annotations[annotationNet], Veth: m.o.Veth, Compress: m.o.Compress,
		Arch: runtime.GOARCH, Kernel: kernelRelease(), Criu: d.manifest.Criu,
	}
	if o.NewID == "" {
		o.NewID = c.id
	}
	if m.canRejoin() {
		o.LinkTimeout = m.o.LinkTimeout.Seconds()
	}
	if o.CPU, err = criu.CPU(ctx, d.opts.Criu); err != nil {
		return nil, err
	}
	usage, err := c.Usage()
	if err != nil {
		return nil, err
	}
	m.memory = int64(usage.Memory.Usage.Usage - min(usage.Memory.Cache, usage.Memory.Usage.Usage))
	o.Memory = m.memory
	if m.o.SharedStorage {
		return o, nil
	}
	return o, m.offerRoot(o)
}

// offerRoot says what of the root file system there is to send.
func (m *migration) offerRoot(o *offer) error {
	spec, bundle, err := loadSpec(m.c.bundle())
	if err != nil {
		return err
	}
	root, err := rootOf(bundle, spec)
	if err != nil {
		return err
	}
	if m.root, err = rootToMove(&root); err != nil {
		return err
	}
	if o.Disk, err = diskUse(m.root.dir); err != nil {
		return fmt.Errorf("measure the root file system: %w", err)
	}
	m.layers, err = layersOf(&root, bundle)
	o.Layers = m.layers
	return err
}

// diskUse returns the bytes that the files below dir take.
func diskUse(dir string) (int64, error) {
	var total int64
	err := inLinklessView(dir, true, func() error {
		return filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if err != nil {
				return ignoreGone(err) // by the guest, which runs
			}
			st, err := e.Info()
			if err != nil {
				return ignoreGone(err)
			}
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				const block = 512
				total += sys.Blocks * block
			}
			return nil
		})
	})
	return total, err
}

func ignoreGone(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// freeDisk returns the bytes that root may still write below dir, or below the
// deepest of its parents that exists.
func freeDisk(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bfree) * st.Bsize, nil
		}
		if !os.IsNotExist(err) || dir == "/" {
			return 0, fmt.Errorf("statfs %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}
