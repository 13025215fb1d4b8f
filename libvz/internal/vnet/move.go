package vnet

import (
	"context"
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

// Gone waits until no host end of the links is left. The kernel takes a veth
// pair down with the network namespace of its inner end, some time after the
// last process in there has ended; who makes the links again under the same
// names must not meet the old ones. It returns when ctx ends at the latest.
func Gone(ctx context.Context, links []Link) error {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("watch network links: %w", err)
	}
	defer func() {
		close(done)
		// The reader of the socket may be about to send one more.
		go func() {
			for range updates { //nolint:revive // drained until it is closed
			}
		}()
	}()
	for Conflicts(links) != nil {
		select {
		case _, ok := <-updates:
			if !ok {
				return fmt.Errorf("watch network links: %w", os.ErrClosed)
			}
		case <-ctx.Done():
			return fmt.Errorf("old network links are still there: %w", ctx.Err())
		}
	}
	return nil
}
