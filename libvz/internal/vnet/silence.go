package vnet

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// silenceTable is of a guest whose packets must neither come nor go. It is in the
// guest's own namespace; CRIU's lock has another name.
const silenceTable = "vzrun-silence"

// Silence drops every packet that comes to or from the network namespace of the
// calling thread, or passes it, until Unsilence. Its processes must be frozen,
// since the guest's root could take it away.
func Silence() error {
	c, t, err := replaceTable(silenceTable, nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for name, hook := range map[string]*nftables.ChainHook{
		"input": nftables.ChainHookInput, "output": nftables.ChainHookOutput, "forward": nftables.ChainHookForward,
	} {
		c.AddChain(&nftables.Chain{
			Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook,
			// Before all that could take notice of a packet.
			Priority: nftables.ChainPriorityRef(-500), Policy: new(nftables.ChainPolicyDrop),
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install packet filter: %w", err)
	}
	return nil
}

// Unsilence ends Silence. It is no error if there was none.
func Unsilence() error {
	c, err := openFilter()
	if err != nil {
		return fmt.Errorf("open packet filter: %w", err)
	}
	c.DelTable(&nftables.Table{Name: silenceTable, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove packet filter table %s: %w", silenceTable, err)
	}
	return nil
}
