package libvz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/vzrun/vzrun/libvz/internal/criu"
	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/vnet"
)

// Names of operations in the journal.
const (
	opMigrate = "migrate"
	opReceive = "receive"
)

// stepCommitting: the other side may have been told to let the guest run. What
// becomes of it is not ours to decide any more, see undoMigration.
const stepCommitting = "committing"

// stepHanded: the guest runs at the other side, and what it lacks of its memory is
// here.
const stepHanded = "handed over"

// roundPrefix begins the names of the rounds' folders, in that of the images.
const roundPrefix = "round-"

// isUnconfirmed tells whether an operation is a migration whose outcome only the
// other side knows. Nobody but Resolve may touch its container.
func isUnconfirmed(op *store.Operation) bool {
	return op != nil && op.Name == opMigrate && (op.Step == stepCommitting || op.Step == stepHanded)
}

// undoMigration lets a guest go on here that has not moved, with its network,
// or removes what is left of one that has.
func (h *Host) undoMigration(e *store.Entry) error {
	op := e.Operation
	switch {
	case op == nil:
		return nil
	case isUnconfirmed(op):
		return unconfirmed(e.ID, op.Migration.Target, errors.New("its answer never arrived"))
	case op.Step == stepCommitted:
		ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
		defer cancel()
		return h.erase(ctx, e)
	}
	init := op.Init
	if init != 0 && h.initAlive(e.ID) {
		if err := inNetworkOf(init, vnet.Unsilence); err != nil {
			return fmt.Errorf("unlock the network: %w", err)
		}
	}
	if op.Images != "" {
		if err := removeRounds(op.Images); err != nil {
			return fmt.Errorf("discard images: %w", err)
		}
	}
	if err := h.undoCheckpoint(e); err != nil {
		return err
	}
	h.announceHere(e.ID, init)
	return nil
}

// holdMoved keeps what has moved from running when the criu goes that served its
// memory.
func (h *Host) holdMoved(ctx context.Context, e *store.Entry) error {
	op := e.Operation
	if op.Name != opMigrate || op.Step != stepCommitted || !op.Migration.Lazy {
		return nil
	}
	if lc, err := libcontainer.Load(h.opts.Root, e.ID); err == nil {
		if st, err := lc.Status(); err == nil && st == libcontainer.Running {
			if err := lc.Pause(); err != nil && h.initAlive(e.ID) {
				return fmt.Errorf("freeze: %w", err)
			}
		}
	}
	return killCriu(ctx, op.Criu, op.CriuStart)
}

// loseReceived ends a guest here whose memory nobody sees to any more, and keeps on
// record that it has run.
func (h *Host) loseReceived(ctx context.Context, e *store.Entry) error {
	m := e.Operation.Migration
	err := recordAt(m.Record).write(&migrationRecord{Token: m.Token, ID: e.ID, State: recordLost})
	if err != nil {
		return err
	}
	if err := dropBundle(m); err != nil {
		return err
	}
	return h.erase(ctx, e)
}

// undoReceive removes a container that was being received and has not been let
// go, with the files that came; one that has been let go is kept.
func (h *Host) undoReceive(ctx context.Context, e *store.Entry) error {
	op := e.Operation
	record := recordAt(op.Migration.Record)
	r, err := record.read()
	if err != nil {
		return err
	}
	if op.Step == stepCommitted && (r.State == recordRunning || h.initAlive(e.ID)) {
		r.State = recordRunning
		if err := record.write(r); err != nil {
			return err
		}
		if err := keepBundle(op.Migration); err != nil {
			h.warn(e.ID, "%v", err)
		}
		return h.keepRestored(ctx, e)
	}
	r.State = recordAborted
	if err := record.write(r); err != nil {
		return err
	}
	// The state goes with erase, and the journal with it: the files first.
	if err := h.endWithoutCgroup(e.ID); err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	if err := h.clear(ctx, e); err != nil {
		return err
	}
	if err := dropBundle(op.Migration); err != nil {
		return err
	}
	return forget(e)
}

func unconfirmed(id, target string, err error) error {
	hint := fmt.Sprintf("vzrun lazy-migrate --resolve %s asks the other side", id)
	if target != "" {
		hint += " (" + target + ")"
	}
	return withHint(hint, "%w: it stands still here and may run there: %w", ErrUnconfirmed, err)
}

// removeRounds removes the rounds' folders in that of the images, and the link to the
// last: CRIU would follow one that it finds. It is idempotent.
func removeRounds(images string) error {
	if err := os.Remove(filepath.Join(images, criu.ParentLink)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(images)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), roundPrefix) {
			if err := store.RemoveTree(images, e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// announceHere tells the neighbours that a guest which was to move has stayed.
func (h *Host) announceHere(id string, init int) {
	if init == 0 {
		return
	}
	if err := inNetworkOf(init, vnet.AnnounceOwn); err != nil {
		h.warn(id, "%v", err)
	}
}
