package wire

import "fmt"

// Kind is that of a control message.
type Kind string

// The messages of a migration in the order in which they come, who sends them,
// and what they mean.
const (
	Offer     Kind = "offer"     // source: what is to be moved, and what it needs
	Answer    Kind = "answer"    // destination: what it has, and what is in the way
	Restore   Kind = "restore"   // source: the guest is frozen and all has been sent
	Ready     Kind = "ready"     // destination: restored, it runs at a word
	Commit    Kind = "commit"    // source: let it run; I shall not
	Committed Kind = "committed" // destination: it runs
	Arrived   Kind = "arrived"   // destination: it has all of its memory, where some came after Committed
	Done      Kind = "done"      // source: my copy is gone

	Abort   Kind = "abort"   // either: it is off, nothing runs here, or goes on here
	Query   Kind = "query"   // source: what became of an earlier migration?
	Outcome Kind = "outcome" // destination
	Rejoin  Kind = "rejoin"  // source: a new connection for one that was lost after Commit
)

// State is how far one side is.
type State string

// The states. Both sides go through the same ones, each at its own moment.
const (
	Begin      State = "begin"
	Offered    State = "offered"
	Agreed     State = "agreed"     // the answer is there; data flow
	Restoring  State = "restoring"  // the source is frozen, the destination at work
	Prepared   State = "prepared"   // the destination waits for a word
	Committing State = "committing" // the word has been given
	Moved      State = "moved"      // the guest runs at the destination
	Whole      State = "whole"      // likewise, and needs nothing of the source any more
	Asking     State = "asking"
	Rejoining  State = "rejoining"
	Over       State = "over" // nothing more comes
)

// step is a message seen from one side.
type step struct {
	from State
	kind Kind
	// bySource says who sends it.
	bySource bool
}

// next holds all that is allowed. Either side may abort while nobody can have
// let the guest run at the destination; after that only the destination may,
// which knows that it failed and that nothing runs.
var next = map[step]State{
	{Begin, Offer, true}:           Offered,
	{Offered, Answer, false}:       Agreed,
	{Agreed, Restore, true}:        Restoring,
	{Restoring, Ready, false}:      Prepared,
	{Prepared, Commit, true}:       Committing,
	{Committing, Committed, false}: Moved,
	{Moved, Done, true}:            Over,
	{Moved, Arrived, false}:        Whole,
	{Whole, Done, true}:            Over,

	{Offered, Abort, true}:     Over,
	{Agreed, Abort, true}:      Over,
	{Restoring, Abort, true}:   Over,
	{Prepared, Abort, true}:    Over,
	{Begin, Abort, false}:      Over,
	{Offered, Abort, false}:    Over,
	{Agreed, Abort, false}:     Over,
	{Restoring, Abort, false}:  Over,
	{Prepared, Abort, false}:   Over,
	{Committing, Abort, false}: Over,

	{Begin, Query, true}:     Asking,
	{Asking, Outcome, false}: Over,
	{Asking, Abort, false}:   Over,

	{Begin, Rejoin, true}:       Rejoining,
	{Rejoining, Outcome, false}: Moved,
	{Rejoining, Abort, false}:   Over,
}

// after decides which state a message leads to. An error wraps ErrProtocol.
func (s State) after(kind Kind, bySource bool) (State, error) {
	to, ok := next[step{s, kind, bySource}]
	if !ok {
		return s, fmt.Errorf("%w: message %.32q in state %s", ErrProtocol, string(kind), s)
	}
	return to, nil
}

// Fate is what a side does when it hears no more of the other one.
type Fate string

// The fates.
const (
	Undo    Fate = "undo"    // nothing has happened: be as before
	Keep    Fate = "keep"    // it has happened: finish
	Unknown Fate = "unknown" // ask the other side, and hold still until it answers
)

// Fate decides what the loss of the connection means in a state. The source is
// the one that may not know: whether its word to commit has arrived. While the
// memory of a guest that runs is on the way, both keep what they have.
func (s State) Fate(role Role) Fate {
	switch s {
	case Moved, Whole:
		return Keep
	case Committing, Rejoining:
		if role == Source {
			return Unknown
		}
		return Keep
	case Begin, Offered, Agreed, Restoring, Prepared, Asking, Over:
	}
	return Undo
}
