package libvz

import (
	"github.com/vzrun/vzrun/libvz/internal/cgroup"
	"github.com/vzrun/vzrun/libvz/internal/store"
)

// A guest can freeze cgroups of its own (systemctl freeze). CRIU runs code of its
// own in every task that it saves, and would wait for ever for one in a frozen
// cgroup. So they are thawed while all tasks are stopped by CRIU, and frozen
// again before CRIU lets go of them: what was frozen never runs.

// thawGuest thaws what the guest has frozen, and notes it first. All tasks must
// be stopped, so that the guest freezes no more.
func thawGuest(e *store.Entry) error {
	path := e.Operation.Cgroups[""]
	if path == "" {
		return nil
	}
	names, err := cgroup.Frozen(path)
	if err != nil || len(names) == 0 {
		return err
	}
	for _, name := range names {
		e.Operation.Frozen = append(e.Operation.Frozen, []byte(name))
	}
	if err := e.Save(); err != nil {
		return err
	}
	return cgroup.Thaw(path, names)
}

// refuseFrozen refuses a pre-dump of a guest that has frozen something: CRIU has no stage
// at which it could be thawed. The answer is final at criu.StageFrozen, when the guest
// stands still and freezes no more.
func (d *dumpPlan) refuseFrozen() error {
	path := d.state.CgroupPaths[""]
	if path == "" || !d.system {
		return nil
	}
	frozen, err := cgroup.Frozen(path)
	if err != nil {
		return err
	}
	if len(frozen) > 0 {
		return withHint("thaw it (systemctl thaw), or leave out --pre-dump, or use --mode lazy or cold",
			"%w: the guest has frozen %.100q, whose memory cannot be taken while it runs", ErrRefused, frozen[0])
	}
	return nil
}

// refreezeGuest undoes thawGuest, once: later it is the guest's to say what is
// frozen.
func refreezeGuest(e *store.Entry) error {
	if len(e.Operation.Frozen) == 0 {
		return nil
	}
	names := make([]string, 0, len(e.Operation.Frozen))
	for _, name := range e.Operation.Frozen {
		names = append(names, string(name))
	}
	if err := cgroup.Freeze(e.Operation.Cgroups[""], names); err != nil {
		return err
	}
	e.Operation.Frozen = nil
	return e.Save()
}

// refreeze freezes what was frozen at the checkpoint, before CRIU lets go of the
// tasks. They are whole by then: that one runs is no reason to end all.
func (r *revival) refreeze() {
	if r.manifest.Cgroups == nil || r.subtree == "" {
		return
	}
	if err := r.manifest.Cgroups.Refreeze(r.subtree); err != nil {
		r.host.warn(r.id, "what was frozen in the guest runs: %v", err)
	}
}
