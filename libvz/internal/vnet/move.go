package vnet

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// Move takes the host ends from the network namespace of the calling thread
// to host, an open /proc/PID/ns/net. Names stay.
//
// CRIU asks the kernel for a veth pair by the index that the inner end had,
// and asks in the namespace of the host end when the container has a user
// namespace. A host interface with that index, likely as there are few low
// numbers, makes it fail ("Operation not supported"). So CRIU is given a
// namespace of its own, in which there is nothing but a loopback interface,
// and its host ends are moved afterwards. In there no inner index meets that
// of a host end: indexes are given in ascending order from 2 on and CRIU makes
// the pairs by ascending inner index, so when it makes the k-th, whose inner
// index is k+1 at least, the host ends have the indexes 2 to k.
func Move(links []Link, host *os.File) error {
	h, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	for _, l := range links {
		if l.Elsewhere {
			continue
		}
		link, err := h.LinkByName(l.Host)
		if err != nil {
			return fmt.Errorf("find %s: %w", l.Host, err)
		}
		if err := h.LinkSetNsFd(link, int(host.Fd())); err != nil {
			return fmt.Errorf("move %s to the host: %w", l.Host, err)
		}
	}
	return nil
}

// LoopbackUp sets the loopback interface up in the network namespace of the
// calling thread: CRIU's probe of the kernel connects to itself.
func LoopbackUp() error {
	h, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
