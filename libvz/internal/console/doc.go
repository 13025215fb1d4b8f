// Package console holds the console of a guest for whoever wants to see it.
//
// It hides how that is done: a [Server] reads a terminal's master, keeps the
// newest output in a bounded [Log], and serves clients on a socket in the
// container's state directory, none of which can make the guest wait. A
// [Client] is such a client. An [Escape] finds the keys that end being
// attached, a [Cleaner] takes out of a guest's output what a terminal would
// obey. It is a leaf: it imports no other package of vzrun.
package console
