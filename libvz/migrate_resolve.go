//go:build !lean

package libvz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/store"
	"github.com/vzrun/vzrun/libvz/internal/wire"
)

// query is the message Query.
type query struct {
	Token string `json:"token"`
	ID    string `json:"id"`
}

// outcome is the message Outcome: committed, aborted, or unknown.
type outcome struct {
	State string `json:"state"`
}

// unknown is what a host says of a migration that it has no record of.
const recordUnknown = "unknown"

// Decision of an administrator about a migration whose other side is gone for
// good.
type Decision string

// The decisions: the copy here runs on, which must not be said if the other one
// may run; or it is given up, which must not be said if it may not.
const (
	DecideHere  Decision = "here"
	DecideThere Decision = "there"
)

// Resolution is how a migration ended after all.
type Resolution struct {
	// Moved says that the container is the other side's.
	Moved bool `json:"moved"`
}

// Unconfirmed returns the target of a container's migration whose outcome is not
// known, and an error that wraps ErrStatus where there is none.
func (h *Host) Unconfirmed(id string) (target string, err error) {
	if err := CheckID(id); err != nil {
		return "", fail("resolve", id, err)
	}
	r, err := h.store.Read(id)
	if err != nil || !isUnconfirmed(r.Operation) {
		return "", fail("resolve", id, withHint("vzrun list shows what it does", "%w: there is no migration to resolve", ErrStatus))
	}
	return r.Operation.Migration.Target, nil
}

// Resolve asks the host at the other end of conn what became of a migration
// whose outcome is not known, and finishes or undoes it here. Where conn is nil,
// decision counts, which is an administrator's word. An error that wraps
// ErrUnconfirmed leaves all as it is.
func (h *Host) Resolve(ctx context.Context, id string, conn io.ReadWriteCloser, decision Decision) (*Resolution, error) {
	res, err := h.resolve(ctx, id, conn, decision)
	return res, fail("resolve", id, err)
}

func (h *Host) resolve(ctx context.Context, id string, conn io.ReadWriteCloser, decision Decision) (*Resolution, error) {
	e, err := h.store.Lock(id)
	if errors.Is(err, store.ErrLocked) {
		return nil, withHint("wait until it is done and try again", "%w: %w", ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	defer e.Close()
	if !isUnconfirmed(e.Operation) {
		return nil, errors.Join(fmt.Errorf("%w: there is no migration to resolve", ErrStatus), h.forgetStray(e))
	}
	if conn != nil {
		if decision, err = h.ask(ctx, conn, e.Operation.Migration.Token, id); err != nil {
			return nil, err
		}
	}
	done, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	end := endCriu
	if e.Operation.Migration.Lazy {
		end = killCriu
	}
	if err := end(done, e.Operation.Criu, e.Operation.CriuStart); err != nil {
		return nil, err
	}
	switch decision {
	case DecideThere:
		if err := e.Step(stepCommitted); err != nil {
			return nil, err
		}
		return &Resolution{Moved: true}, h.undoMigration(e)
	case DecideHere:
		if err := e.Step(""); err != nil {
			return nil, err
		}
		return &Resolution{}, h.undoMigration(e)
	}
	return nil, fmt.Errorf("unknown decision %q", string(decision))
}

// forgetStray removes a lock that was made only to look.
func (h *Host) forgetStray(e *store.Entry) error {
	if e.Operation == nil && h.stampOf(e.ID) == (stamp{}) {
		return e.Forget()
	}
	return nil
}

// ask puts the question to the other side.
func (h *Host) ask(ctx context.Context, conn io.ReadWriteCloser, token, id string) (Decision, error) {
	session, err := wire.New(conn, wire.Source)
	if err != nil {
		return "", err
	}
	defer session.Close()
	control, err := session.Control()
	if err != nil {
		return "", err
	}
	if err := control.Send(wire.Query, query{Token: token, ID: id}); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	msg, err := control.Receive(ctx)
	var off *wire.Aborted
	if errors.As(err, &off) {
		return "", withHint("try again in a minute", "%w: the other side cannot tell: %s", ErrUnconfirmed, off.Reason)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	var o outcome
	if err := msg.Decode(&o); err != nil {
		return "", err
	}
	switch o.State {
	case recordRunning:
		return DecideThere, nil
	case recordAborted:
		return DecideHere, nil
	case recordLost:
		return "", withHint("--decide here lets it go on here from where it was stopped; what it has done there since is lost",
			"%w: %w", ErrUnconfirmed, errLost)
	}
	return "", withHint("ask the host that it was sent to; if that one has lost its disk, look where it runs, and say so with --decide here or --decide there",
		"%w: that host has no record of it", ErrUnconfirmed)
}

// queryPatience is how long a vzrun that is still at work on the migration may
// take to notice that its connection is gone.
const (
	queryPatience = 45 * time.Second
	queryPause    = 100 * time.Millisecond
)

// answerQuery tells a source what became of a migration. Whatever is said is
// final: what has not run by now never will.
func (r *reception) answerQuery(msg *wire.Message) error {
	var q query
	if err := msg.Decode(&q); err != nil {
		return r.refuse(err)
	}
	record, err := recordOf(r.o.Bundles, q.Token)
	if err != nil {
		return r.refuse(err)
	}
	// Who asks so serves no memory any more: a guest that waits for it waits in vain.
	if conn, err := r.host.dialLink(record, linkGiveUp); err == nil {
		conn.Close()
	}
	state, err := r.host.outcomeOf(record, nil)
	if err != nil {
		return r.refuse(err)
	}
	if err := r.control.Send(wire.Outcome, outcome{State: state}); err != nil {
		return err
	}
	r.session.Linger()
	return nil
}

// outcomeOf takes the lock of the container, and with it undoes or finishes a
// migration whose vzrun has died; one that is still at work is waited for. Between two
// looks it asks isWaiting, if that is not nil: its true makes the answer recordWaiting.
func (h *Host) outcomeOf(record recordAt, isWaiting func() bool) (string, error) {
	r, err := record.read()
	if err != nil {
		return "", err
	}
	if r.ID == "" || CheckID(r.ID) != nil {
		return recordUnknown, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryPatience)
	defer cancel()
	for {
		if isWaiting != nil && isWaiting() {
			return recordWaiting, nil
		}
		e, err := h.lock(r.ID)
		if err == nil {
			defer e.Close()
			if err := h.forgetStray(e); err != nil {
				return "", err
			}
			break
		}
		if !errors.Is(err, ErrBusy) {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(queryPause): // a lock that is freed tells nobody
		}
	}
	if r, err = record.read(); err != nil {
		return "", err
	}
	switch r.State {
	case recordRunning, recordAborted, recordLost:
		return r.State, nil
	case recordCommitted:
		// Its journal went with a reboot, so it cannot be seen whether it
		// has run; the word was there, and nothing but a crash came next.
		return recordUnknown, nil
	}
	// It never had the word, and its vzrun is gone.
	r.State = recordAborted
	return r.State, record.write(r)
}
