//go:build !lean

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vzrun/vzrun/internal/cli"
	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz"
)

// stdStream is the name of standard output, or input, among files.
const stdStream = "-"

// maxKeyFile bounds files with recipients and identities.
const maxKeyFile = 1 << 20

func exportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "export", Usage: "write one archive, `FILE` or - for standard output, that can be moved"},
		&cli.StringFlag{Name: "export-format", Usage: "`FORMAT` of the archive: tar, or oci for a directory with an OCI image (default: by the suffix .oci)"},
		&cli.IntFlag{Name: "compression-level", Value: 1, Usage: "`LEVEL` of zstd, 1 to 22, or 0 for none (which the suffix .tar means, too)"},
		&cli.BoolFlag{Name: "with-rootfs", Usage: "put the whole root file system into the archive"},
		&cli.StringSliceFlag{Name: "encrypt-to", Usage: "encrypt the archive to a `RECIPIENT` of age, age1..., or a file of them; may be repeated"},
	}
}

func identityFlag() cli.Flag {
	return &cli.StringFlag{Name: "identity", Usage: "`FILE` with the secret key of age for an encrypted archive"}
}

// exportOptions returns nil where no export is asked for.
func exportOptions(c *cli.Context) (*libvz.ExportOptions, error) {
	path := c.String("export")
	if !c.IsSet("export") {
		for _, name := range []string{"export-format", "compression-level", "with-rootfs", "encrypt-to"} {
			if c.IsSet(name) {
				return nil, &usageError{msg: "checkpoint: --" + name + " goes with --export", hint: "name the archive: --export FILE"}
			}
		}
		return nil, nil
	}
	o := &libvz.ExportOptions{Level: c.Int("compression-level"), Rootfs: c.Bool("with-rootfs"), Version: c.App.Version}
	switch format := c.String("export-format"); format {
	case "oci":
		o.Layout = true
	case "tar":
	case "":
		o.Layout = strings.HasSuffix(path, ".oci")
	default:
		return nil, &usageError{msg: fmt.Sprintf("checkpoint: unknown --export-format %q", format), hint: "formats are tar and oci"}
	}
	if !c.IsSet("compression-level") && strings.HasSuffix(path, ".tar") {
		o.Level = 0
	}
	if o.Level < 0 || o.Level > 22 {
		return nil, &usageError{msg: fmt.Sprintf("checkpoint: --compression-level %d", o.Level), hint: "levels are 0 to 22"}
	}
	var err error
	if o.Recipients, err = recipients(c.StringSlice("encrypt-to")); err != nil {
		return nil, err
	}
	if o.Layout && o.Recipients != "" {
		return nil, &usageError{msg: "checkpoint: an OCI image cannot be encrypted to recipients of age", hint: "leave out --encrypt-to, or choose --export-format tar"}
	}
	return o, exportTo(c, o, path)
}

// exportTo decides where the archive goes.
func exportTo(c *cli.Context, o *libvz.ExportOptions, path string) error {
	switch {
	case path == "":
		return &usageError{msg: "checkpoint: --export needs a file", hint: "- is standard output"}
	case path != stdStream:
		var err error
		o.Path, err = filepath.Abs(path)
		return err
	case o.Layout:
		return &usageError{msg: "checkpoint: an OCI image layout is a directory, not a stream", hint: "choose --export-format tar, or name a directory"}
	case c.Bool("print-stats"):
		return &usageError{msg: "checkpoint: --print-stats and the archive both go to standard output", hint: "leave out one of them"}
	case isTerminal(os.Stdout):
		return &usageError{msg: "checkpoint: standard output is a terminal", hint: "write the archive to a file or a pipe"}
	}
	o.To = os.Stdout
	return nil
}

// recipients returns the text of all recipients, one a line.
func recipients(given []string) (string, error) {
	var all []string
	for _, r := range given {
		if !strings.HasPrefix(r, "age1") {
			data, err := readKeyFile(r)
			if err != nil {
				return "", fmt.Errorf("checkpoint: recipients: %w", err)
			}
			r = data
		}
		all = append(all, r)
	}
	return strings.Join(all, "\n"), nil
}

func readKeyFile(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Size() > maxKeyFile {
		return "", fmt.Errorf("%s is not a file of at most %d bytes", path, maxKeyFile)
	}
	data, err := os.ReadFile(path)
	return string(data), err
}

// archiveSource is where an archive is read that flags or arguments name.
func archiveSource(c *cli.Context, path string) (libvz.ArchiveSource, error) {
	var s libvz.ArchiveSource
	if name := c.String("identity"); name != "" {
		var err error
		if s.Identity, err = readKeyFile(name); err != nil {
			return s, &libvz.Error{Op: c.Command.Name, Err: fmt.Errorf("identity: %w", err), Hint: "name a file as age-keygen writes it"}
		}
	}
	if path != stdStream {
		s.Path = path
		return s, nil
	}
	if isTerminal(os.Stdin) {
		return s, &usageError{msg: c.Command.Name + ": standard input is a terminal", hint: "the archive is read from a file or a pipe"}
	}
	s.From = os.Stdin
	return s, nil
}

// workHard prepares for the work of an archive: all processors, memory given
// back, and a reader that goes away is an error and not our death, as it would
// be on standard output.
func workHard() {
	tuneForLong()
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU())
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
}

// imported is what --import has unpacked; nil = nothing was.
type imported struct{ *libvz.Imported }

// importArchive does what --import asks for before a restore.
func (l *launch) importArchive(c *cli.Context) (imported, error) {
	path := c.String("import")
	if !c.IsSet("import") {
		if c.IsSet("identity") {
			return imported{}, &usageError{msg: "restore: --identity goes with --import", hint: "name the archive: --import FILE"}
		}
		return imported{}, nil
	}
	if path == "" {
		return imported{}, &usageError{msg: "restore: --import needs a file", hint: "- is standard input"}
	}
	if c.IsSet("clone-of") {
		return imported{}, &usageError{msg: "restore: --clone-of and --import exclude each other", hint: "keep the images with --image-path, and clone them afterwards"}
	}
	if c.Bool("lazy-pages") || c.IsSet("page-server") {
		return imported{}, &usageError{msg: "restore: an archive has all of its memory", hint: "leave out --lazy-pages and --page-server"}
	}
	source, err := archiveSource(c, path)
	if err != nil {
		return imported{}, err
	}
	o := libvz.ImportOptions{ArchiveSource: source}
	for flag, to := range map[string]*string{"bundle": &o.Bundle, "image-path": &o.ImagePath, "work-path": &o.WorkPath} {
		if c.IsSet(flag) {
			if *to, err = filepath.Abs(c.String(flag)); err != nil {
				return imported{}, err
			}
		}
	}
	workHard()
	p := newProgress()
	defer p.stop()
	host, err := openHostWith(c, p.onEvent)
	if err != nil {
		return imported{}, err
	}
	ctx, cancel := interruptible(c)
	defer cancel()
	i, err := host.Import(ctx, l.id, o)
	if err != nil {
		return imported{}, err
	}
	if path == stdStream {
		if err := emptyStdin(); err != nil {
			return imported{}, imported{i}.end(err)
		}
	}
	return imported{i}, nil
}

// emptyStdin gives the guest something to read that is not what is left of an
// archive, and that the next checkpoint can save.
func emptyStdin() error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), int(os.Stdin.Fd()), 0)
}

// end removes what the restore needed, or what a failed one has left.
func (i imported) end(failure error) error {
	if i.Imported == nil {
		return failure
	}
	return errors.Join(failure, i.Close(failure))
}

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print what is in a checkpoint",
		ArgsUsage: "<file, directory or ->",
		Flags:     []cli.Flag{formatFlag("table"), identityFlag()},
		Action:    inspect,
	}
}

// inspect is a verb below checkpoint, whose argument is a container's id. One
// that is called "inspect" is still checkpointed: this verb needs a second word.
func inspect(c *cli.Context) error {
	if c.NArg() == 0 && c.NumFlags() == 0 {
		return checkpoint(c.Parent())
	}
	if err := checkPositionals("checkpoint inspect", c.Command.ArgsUsage, c.Args().Slice(), 1, 1); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c, "table")
	if err != nil {
		return err
	}
	source, err := archiveSource(c, c.Args().First())
	if err != nil {
		return err
	}
	workHard()
	p := newProgress()
	defer p.stop()
	ctx, cancel := interruptible(c)
	defer cancel()
	i, err := libvz.Inspect(ctx, source, p.onEvent)
	p.stop()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(c, i, "  ")
	}
	for _, row := range i.Table() {
		fmt.Fprintf(c.App.Writer, "%-14s %s\n", row[0], row[1])
	}
	return nil
}
