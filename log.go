package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/sirupsen/logrus"
)

// The log is logrus's standard logger, because libcontainer writes to it too.

// logPlainlyToStderr is the log of somebody at a terminal, until flags ask for more.
func logPlainlyToStderr() {
	logrus.SetOutput(os.Stderr)
	logrus.SetFormatter(plainFormatter{})
}

func configureLog(file, format string, debug bool) error {
	if format != "text" && format != "json" && format != "" {
		return &usageError{msg: fmt.Sprintf("--log-format %q is neither text nor json", format)}
	}
	if debug {
		logrus.SetLevel(logrus.DebugLevel)
	}
	out := io.Writer(os.Stderr)
	if file != "" && file != "/dev/stderr" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		out = f
	}
	logrus.SetOutput(out)
	switch {
	case format == "json":
		logrus.SetFormatter(&logrus.JSONFormatter{})
	case out == os.Stderr:
		logrus.SetFormatter(plainFormatter{})
	default:
		logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true})
	}
	return nil
}

func logsToStderr() bool {
	return logrus.StandardLogger().Out == os.Stderr
}

// plainFormatter writes for people: the program's name, the level unless it is
// an error, the message. What --debug adds has the form that runc gives it.
type plainFormatter struct{}

func (plainFormatter) Format(e *logrus.Entry) ([]byte, error) {
	if e.Level > logrus.InfoLevel {
		return (&logrus.TextFormatter{DisableColors: true}).Format(e)
	}
	var line bytes.Buffer
	line.WriteString("vzrun: ")
	if e.Level > logrus.ErrorLevel {
		line.WriteString(e.Level.String() + ": ")
	}
	line.WriteString(printableLines(strings.TrimRight(e.Message, "\n")))
	for _, key := range sortedKeys(e.Data) {
		fmt.Fprintf(&line, " %s=%s", key, printableLines(fmt.Sprint(e.Data[key])))
	}
	line.WriteByte('\n')
	return line.Bytes(), nil
}

func sortedKeys(fields logrus.Fields) []string {
	keys := make([]string, 0, len(fields))
	for key := range fields {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// printable keeps what guests and other hosts say from the terminal's control.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

// printableLines is printable for a text of ours, which may have lines.
func printableLines(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, text)
}
