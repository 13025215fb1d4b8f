package criu

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What `ip rule save` writes in a new network namespace, rule by rule.
const (
	rulesHead   = "86697071"
	ruleLocal   = "340000002000020050870c6b6c12000002000000ff0000010000000008000f00ff00000008000e00ffffffff0500150002000000"
	ruleMain    = "3c0000002000020050870c6b6c12000002000000fe0000010000000008000f00fe00000008000e00ffffffff050015000200000008000600fe7f0000"
	ruleDefault = "3c0000002000020050870c6b6c12000002000000fd0000010000000008000f00fd00000008000e00ffffffff050015000200000008000600ff7f0000"
)

func unhex(t *testing.T, text ...string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.Join(text, ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDefaultRules(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want bool
	}{
		"a new namespace":    {unhex(t, rulesHead, ruleLocal, ruleMain, ruleDefault), true},
		"one is missing":     {unhex(t, rulesHead, ruleLocal, ruleMain), false},
		"one more":           {unhex(t, rulesHead, ruleLocal, ruleMain, ruleDefault, ruleMain), false},
		"another order":      {unhex(t, rulesHead, ruleMain, ruleLocal, ruleDefault), false},
		"another table":      {unhex(t, rulesHead, ruleLocal, strings.Replace(ruleMain, "08000f00fe", "08000f00fb", 1), ruleDefault), false},
		"another priority":   {unhex(t, rulesHead, ruleLocal, ruleMain, strings.Replace(ruleDefault, "ff7f0000", "ff6f0000", 1)), false},
		"from an address":    {unhex(t, rulesHead, ruleLocal, strings.Replace(ruleMain, "6c12000002000000", "6c12000002002000", 1), ruleDefault), false},
		"made by the guest":  {unhex(t, rulesHead, ruleLocal, strings.Replace(ruleMain, "0500150002", "0500150003", 1), ruleDefault), false},
		"with another field": {unhex(t, rulesHead, ruleLocal, strings.Replace(ruleMain, "0500150002", "0500160002", 1), ruleDefault), false},
		"cut short":          {unhex(t, rulesHead, ruleLocal, ruleMain, ruleDefault[:60]), false},
		"nothing":            {nil, false},
		"another file":       {unhex(t, "00000000", ruleLocal, ruleMain, ruleDefault), false},
	} {
		if got := defaultRules(c.data); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestDropDefaults(t *testing.T) {
	dir := t.TempDir()
	rules := unhex(t, rulesHead, ruleLocal, ruleMain, ruleDefault)
	dropped := map[string][]byte{
		"iptables-10.img": {}, "ip6tables-10.img": {}, "rule-10.img": rules,
		"route-10.img": unhex(t, "24123145"), "route6-10.img": unhex(t, "24123145"),
	}
	kept := map[string][]byte{
		"iptables-11.img": []byte("*filter"), "route-11.img": unhex(t, "2412314534000000"), "rule-11.img": rules[:100],
		"route-12.img": {}, "files.img": {},
	}
	for _, files := range []map[string][]byte{dropped, kept} {
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := DropDefaults(dir); err != nil {
		t.Fatal(err)
	}
	for name := range dropped {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	for name := range kept {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
