package vnet

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
)

// Move takes the host ends from the network namespace of the calling thread
// to host, an open /proc/PID/ns/net. Names stay.
//
// CRIU asks the kernel for a veth pair by the index that the inner end had,
// and asks in the namespace of the host end when the container has a user
// namespace. A host interface with that index, likely as there are few low
// numbers, makes it fail ("Operation not supported"). So CRIU is given a
// namespace of its own, in which there is nothing but a loopback interface and
// the next index meets none of the container's (SkipIndexes), and its host ends
// are moved afterwards.
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

// SkipIndexes makes the network namespace of the calling thread, which must be
// new, give indexes to the host ends of the links that none of the inner ends
// has: see Move. The kernel gives each index once, in ascending order, so some
// interfaces are made and removed. CRIU makes the pairs in any order.
func SkipIndexes(links []Link) error {
	h, err := newHost()
	if err != nil {
		return err
	}
	defer h.Close()
	var passing []netlink.Link
	for i := firstIndex; i < freeIndexes(links); i += 2 {
		pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: fmt.Sprintf("skip%d", i+1), PeerTxQLen: -1}
		pair.Name = fmt.Sprintf("skip%d", i)
		if err := h.LinkAdd(pair); err != nil {
			return fmt.Errorf("skip interface indexes: %w", err)
		}
		passing = append(passing, pair)
	}
	for _, pair := range passing {
		if err := h.LinkDel(pair); err != nil {
			return fmt.Errorf("skip interface indexes: %w", err)
		}
	}
	return nil
}

// firstIndex is the first one that a new namespace gives; 1 is the loopback
// interface.
const firstIndex = 2

// freeIndexes returns the first index from which as many in a row as there are
// host ends are those of no inner end. It is even, as pairs are skipped.
func freeIndexes(links []Link) int {
	var taken []int
	for _, l := range links {
		switch {
		case l.Elsewhere:
		case l.Index == 0: // a record without it: most likely one of the first
			taken = append(taken, firstIndex+len(taken))
		default:
			taken = append(taken, l.Index)
		}
	}
	if len(taken) < 2 {
		return firstIndex // one meets no other
	}
	first := firstIndex
	for slices.ContainsFunc(taken, func(i int) bool { return i >= first && i < first+len(taken) }) {
		first += 2
	}
	return first
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
