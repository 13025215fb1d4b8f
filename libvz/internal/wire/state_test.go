package wire

import (
	"errors"
	"testing"
)

var (
	allStates = []State{Begin, Offered, Agreed, Restoring, Prepared, Committing, Moved, Whole, Asking, Rejoining, Over}
	allKinds  = []Kind{Offer, Answer, Restore, Ready, Commit, Committed, Arrived, Done, Abort, Query, Outcome, Rejoin, "", "other"}
)

// Every message in every state, from either side: what is not in this table is
// an error and changes nothing.
func TestEveryMessageInEveryState(t *testing.T) {
	type edge struct {
		from     State
		kind     Kind
		bySource bool
	}
	allowed := map[edge]State{
		{Begin, Offer, true}:           Offered,
		{Begin, Query, true}:           Asking,
		{Begin, Abort, false}:          Over,
		{Asking, Outcome, false}:       Over,
		{Asking, Abort, false}:         Over,
		{Offered, Answer, false}:       Agreed,
		{Agreed, Restore, true}:        Restoring,
		{Restoring, Ready, false}:      Prepared,
		{Prepared, Commit, true}:       Committing,
		{Committing, Committed, false}: Moved,
		{Committing, Abort, false}:     Over,
		{Moved, Done, true}:            Over,
		{Moved, Arrived, false}:        Whole,
		{Whole, Done, true}:            Over,
		{Begin, Rejoin, true}:          Rejoining,
		{Rejoining, Outcome, false}:    Moved,
		{Rejoining, Abort, false}:      Over,
	}
	for _, s := range []State{Offered, Agreed, Restoring, Prepared} {
		allowed[edge{s, Abort, true}] = Over
		allowed[edge{s, Abort, false}] = Over
	}
	for _, from := range allStates {
		for _, kind := range allKinds {
			for _, bySource := range []bool{true, false} {
				to, err := from.after(kind, bySource)
				want, ok := allowed[edge{from, kind, bySource}]
				switch {
				case ok && (err != nil || to != want):
					t.Errorf("%s, %q by source %v: %s, %v; want %s", from, kind, bySource, to, err, want)
				case !ok && (!errors.Is(err, ErrProtocol) || to != from):
					t.Errorf("%s, %q by source %v: %s, %v; want an error", from, kind, bySource, to, err)
				}
			}
		}
	}
}

// Wherever the connection ends, with each side where it may be then, at most one
// keeps the guest, and one does unless the source has to ask. The two are at most
// one message apart.
func TestWhateverIsLostOneSideHasTheGuest(t *testing.T) {
	order := []State{Begin, Offered, Agreed, Restoring, Prepared, Committing, Moved, Whole, Over}
	kinds := []Kind{Offer, Answer, Restore, Ready, Commit, Committed, Arrived, Done}
	bySource := []bool{true, false, true, false, true, false, false, true}
	for i := range kinds {
		if to, err := order[i].after(kinds[i], bySource[i]); err != nil || to != order[i+1] {
			t.Fatalf("%s in %s: %s, %v", kinds[i], order[i], to, err)
		}
		for _, arrived := range []bool{true, false} {
			sender, receiver := order[i+1], order[i]
			if arrived {
				receiver = order[i+1]
			}
			source, destination := sender, receiver
			if !bySource[i] {
				source, destination = receiver, sender
			}
			if source == Over {
				continue // it has nothing any more
			}
			s, d := source.Fate(Source), destination.Fate(Destination)
			switch {
			case s == Undo && d == Keep:
				t.Errorf("source %s, destination %s: it runs twice", source, destination)
			case s == Keep && d == Undo:
				t.Errorf("source %s, destination %s: it runs nowhere", source, destination)
			case s == Unknown && source != Committing:
				t.Errorf("source %s need not ask", source)
			}
		}
	}
}
