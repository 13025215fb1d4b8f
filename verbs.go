//go:build !lean

package main

import "github.com/vzrun/vzrun/internal/cli"

// processors is how many this program uses at the most: archives are compressed
// while they are written.
const processors = 2

func verbs() []*cli.Command {
	return []*cli.Command{
		createCommand(), startCommand(), runCommand(), stateCommand(), listCommand(),
		killCommand(), deleteCommand(), execCommand(), psCommand(), pauseCommand(),
		resumeCommand(), specCommand(), featuresCommand(), doctorCommand(), checkpointCommand(),
		restoreCommand(), updateCommand(), eventsCommand(), topCommand(), readyCommand(), stopCommand(), enterCommand(),
		consoleCommand(), logsCommand(), holdConsoleCommand(), lazyMigrateCommand(), receiveCommand(), relayRsyncCommand(), holdMemoryCommand(),
	}
}

// handOver has nothing to do: this is the full program.
func handOver(*cli.App, []string) error { return nil }
