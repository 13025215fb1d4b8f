//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// In modes pre-copy and hybrid most of the memory is sent while the guest runs here:
// CRIU takes all of it, then what was written since, round after round, each into a
// folder of its own beside the last images. The destination keeps that chain, and the
// last dump refers to it.

// streamRound carries the images of one round, as streamImages does; its argument is
// the round's number.
const streamRound = "round"

// roundFolder is the place of a round beside the last images, "" for none.
func roundFolder(n int) string {
	if n == 0 {
		return ""
	}
	return roundPrefix + strconv.Itoa(n)
}

// parentOf is what round n builds on, as its images name it.
func parentOf(n int) string {
	if n <= 1 {
		return ""
	}
	return "../" + roundFolder(n-1)
}

// hasRounds and isLazy say what a mode consists of.
func hasRounds(mode string) bool { return mode == ModePreCopy || mode == ModeHybrid }
func isLazy(mode string) bool    { return mode == ModeLazy || mode == ModeHybrid }

// planRounds refuses, before anything is touched, where the kernel cannot tell which
// pages were written.
func (m *migration) planRounds(ctx context.Context) error {
	features, err := criu.Features(ctx, m.plan.opts.Criu)
	if err != nil {
		return err
	}
	if !features.MemTrack {
		return withHint("use --mode lazy or cold, or a kernel with CONFIG_MEM_SOFT_DIRTY",
			"%w: this kernel does not track changes of memory, as --mode %s needs", ErrUnsupported, m.o.Mode)
	}
	return m.plan.refuseFrozen()
}

// copyRounds sends memory while the guest runs, until it is to be stopped. After an
// error it runs as before.
func (m *migration) copyRounds(ctx context.Context) error {
	rule := roundRule{budget: m.o.FrozenBudget, rest: isLazy(m.o.Mode)}
	for {
		n := len(m.stats.Rounds) + 1
		round, err := m.copyRound(ctx, n)
		if err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
		m.stats.Rounds = append(m.stats.Rounds, *round)
		m.plan.opts.Parent, m.plan.manifest.Parent = roundFolder(n), roundFolder(n)
		next := rule.after(m.stats.Rounds)
		if next == anotherRound {
			continue
		}
		fixed, memory := rule.standstill(m.stats.Rounds)
		switch {
		case next == stopGuest:
			return nil
		case rule.rest:
			m.c.host.warn(m.c.id, "it may stand still for longer than %v: about %.1f s", m.o.FrozenBudget, fixed.Seconds())
			return nil
		}
		return withHint("allow more with --frozen-budget, leave it out, or use --mode hybrid",
			"%w: after %d rounds it would stand still for about %.1f s, of them %.1f s for its memory, and %v are allowed",
			ErrRefused, n, (fixed + memory).Seconds(), memory.Seconds(), m.o.FrozenBudget)
	}
}

func (m *migration) copyRound(ctx context.Context, n int) (*Round, error) {
	begun := time.Now()
	dir := filepath.Join(m.plan.opts.Images, roundFolder(n))
	if err := newImageDir(dir); err != nil {
		return nil, err
	}
	o := m.plan.opts
	o.Images, o.Work, o.PreDump, o.Parent, o.Lazy = dir, dir, true, parentOf(n), nil
	o.Started = noteCriu(m.entry)
	o.Stage = func(s criu.Stage) error {
		if s.Name == criu.StageFrozen {
			return m.plan.refuseFrozen()
		}
		return nil
	}
	m.c.host.event(Event{ID: m.c.id, Step: "copying memory", Round: n})
	taking := *m.plan
	taking.opts = o
	measured, err := taking.runCriu(ctx)
	if err != nil {
		return nil, m.c.explainDump(err)
	}
	dumped := time.Since(begun)
	taken := m.plan.manifest
	taken.PreDump, taken.Parent, taken.Lazy = true, o.Parent, false
	if err := taken.complete(dir); err != nil {
		return nil, err
	}
	m.c.host.event(Event{ID: m.c.id, Step: "copying memory", Round: n, Pages: measured.Pages, Total: taken.Bytes})
	sent, err := sendImages(ctx, m.session, dir, &taken, streamRound, strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	if err := forgetPages(dir, taken.Files); err != nil {
		return nil, err
	}
	return &Round{
		Pages: measured.Pages, Bytes: sent, Frozen: measured.Frozen.Seconds(), Dump: dumped.Seconds(), Took: time.Since(begun).Seconds(),
	}, nil
}

// forgetPages gives back the room of pages that the other side has. CRIU looks at what
// a round consists of when it takes the next one, and not at the pages themselves.
func forgetPages(dir string, files map[string]int64) error {
	for name, size := range files {
		if !criu.IsPages(name) || size == 0 {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size)
		f.Close()
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // else they stay until the end
			return fmt.Errorf("give back the room of %s: %w", name, err)
		}
	}
	return nil
}

// roundOf checks that a stream is the round that comes after the last one.
func (r *reception) roundOf(args []string) (int, error) {
	n := int(r.rounds.Load()) + 1
	if !hasRounds(r.offer.Mode) || n > maxRounds || len(args) != 1 || args[0] != strconv.Itoa(n) {
		return 0, fmt.Errorf("%w: round %.100q in place of round %d", wire.ErrProtocol, args, n)
	}
	return n, nil
}

// receiveRound stores the images of a round.
func (r *reception) receiveRound(stream *wire.Stream, n int) error {
	dir := filepath.Join(r.bundle, arrivalFolder, roundFolder(n))
	if err := os.Mkdir(dir, 0o750); err != nil {
		stream.Close()
		return err
	}
	return receiveImages(stream, dir)
}

// linkRounds makes the received images and rounds the chain that CRIU follows, as it
// makes one itself: by a symbolic link in each folder.
func (r *reception) linkRounds(images string) error {
	last := int(r.rounds.Load())
	for n := 0; n <= last; n++ {
		dir, parent := filepath.Join(images, roundFolder(n)), parentOf(n)
		if n == 0 { // not a round, but what comes after the last one
			parent = roundFolder(last)
		}
		m, err := loadManifest(dir)
		if err != nil {
			return err
		}
		if m.Parent != parent || m.PreDump != (n > 0) {
			return fmt.Errorf("%w: the images in %q build on %.100q", wire.ErrProtocol, roundFolder(n), m.Parent)
		}
		if parent == "" {
			continue
		}
		if err := os.Symlink(parent, filepath.Join(dir, criu.ParentLink)); err != nil {
			return err
		}
	}
	return nil
}
