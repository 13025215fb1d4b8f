package libvz

import "github.com/vzrun/vzrun/libvz/internal/store"

// Claim is an id that is locked, with the journal of a restore that is to follow. Its
// methods may be called on nil, which has neither.
type Claim struct {
	host  *Host
	entry *store.Entry // nil when somebody has taken it
}

// take hands lock and journal on, once; then there is nil.
func (c *Claim) take() *store.Entry {
	if c == nil {
		return nil
	}
	entry := c.entry
	c.entry = nil
	return entry
}

// release undoes what the journal names, where nobody has taken it.
func (c *Claim) release() error {
	entry := c.take()
	if entry == nil {
		return nil
	}
	defer entry.Close()
	if entry.Operation == nil { // only the lock was taken
		return entry.Forget()
	}
	return c.host.undo(entry)
}
