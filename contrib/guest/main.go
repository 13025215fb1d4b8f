// Command vzguest runs in the guests of the tests and the demo and shows whether
// a checkpoint, restore or migration lost, repeated or damaged anything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: vzguest count LOG           append a counter to LOG, many times a second
       vzguest verify LOG          check LOG: fails on a gap, a repeat or a bad line
       vzguest echo [-mptcp] ADDR  TCP server: answer each line with its number and itself
       vzguest talk ADDR           use one connection to an echo server until SIGTERM or
                                   the end of stdin: fails on a lost or wrong answer`

var errUsage = errors.New(usage)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "vzguest: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	mptcp := flags.Bool("mptcp", false, "listen with multipath TCP, as Go programs do by default")
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() != 1 {
		return errUsage
	}
	switch arg := flags.Arg(0); args[0] {
	case "count":
		return count(ctx, arg)
	case "verify":
		return verify(os.Stdout, arg)
	case "echo":
		return echo(ctx, arg, *mptcp)
	case "talk":
		return talk(ctx, os.Stdin, os.Stdout, arg)
	}
	return errUsage
}
