package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type ca struct {
	TTL time.Duration `mapstructure:"ttl" usage:"lifetime"`
}
type settings struct {
	LogLevel string            `mapstructure:"logLevel" usage:"level"`
	CA       ca                `mapstructure:"ca"`
	Names    map[string]string `mapstructure:"names" usage:"names"`
}

func (s settings) Validate() error {
	if s.CA.TTL <= 0 {
		return errors.New("ca.ttl must be positive")
	}
	return nil
}

func run(t *testing.T, file string, args ...string) (settings, error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", path}, args...)
	}
	var got settings
	cmd := Command("x", "x", settings{LogLevel: "info", CA: ca{TTL: time.Hour}}, func(_ context.Context, s settings) error {
		got = s
		return nil
	})
	cmd.SetArgs(args)
	cmd.SetErr(new(strings.Builder))
	err := cmd.ExecuteContext(t.Context())
	return got, err
}

func TestFlagsOverrideEnvironmentOverridesFile(t *testing.T) {
	t.Setenv("BULWARK_CA_TTL", "3h")
	got, err := run(t, "logLevel: warn\nca: {ttl: 2h}\n", "--logLevel", "error")
	if err != nil {
		t.Fatal(err)
	}
	if got.LogLevel != "error" || got.CA.TTL != 3*time.Hour {
		t.Fatalf("got %+v", got)
	}
}

func TestMapFromFile(t *testing.T) {
	got, err := run(t, "names: {\"spiffe://a/b\": x.y.svc}\n")
	if err != nil || got.Names["spiffe://a/b"] != "x.y.svc" {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestUnknownKeyIsNamed(t *testing.T) {
	_, err := run(t, "ca: {tll: 2h}\n")
	if err == nil || !strings.Contains(err.Error(), "tll") {
		t.Fatalf("got %v, want an error that names tll", err)
	}
}

func TestInvalidSettingIsRefused(t *testing.T) {
	_, err := run(t, "", "--ca.ttl=0s")
	if err == nil || !strings.Contains(err.Error(), "ca.ttl must be positive") {
		t.Fatalf("got %v", err)
	}
}
