package doctor

import (
	"fmt"
	"os"

	nft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNetwork runs do with a network namespace of its own.
func inNetwork(do func(ns netns.NsHandle) error) error {
	return apart(unix.CLONE_NEWNET, func() error {
		ns, err := netns.GetFromPath("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		return do(ns)
	})
}

func links() Result {
	return Result{Err: inNetwork(func(ns netns.NsHandle) error {
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
			return fmt.Errorf("make veth: %w", err)
		}
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "c"}}); err != nil {
			return fmt.Errorf("make bridge: %w", err)
		}
		return nil
	})}
}

// nftables makes a table with a chain that filters.
func nftables() Result {
	return Result{Err: inNetwork(func(ns netns.NsHandle) error {
		c, err := nft.New(nft.WithNetNSFd(int(ns)))
		if err != nil {
			return err
		}
		table := c.AddTable(&nft.Table{Family: nft.TableFamilyINet, Name: "doctor"})
		c.AddChain(&nft.Chain{Name: "output", Table: table, Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookOutput, Priority: nft.ChainPriorityFilter})
		return os.NewSyscallError("nftables", c.Flush())
	})}
}
