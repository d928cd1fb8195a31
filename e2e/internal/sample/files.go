package sample

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// FileView is what a file shows to whoever looks.
type FileView struct {
	Mode  string `json:"mode"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Error string `json:"error,omitempty"` // why it cannot be read
}

// FilesResult is what Files prints.
type FilesResult struct {
	Files   map[string]FileView `json:"files"`
	Reads   int                 `json:"reads"`   // of certificate, key and roots together
	ID      string              `json:"id"`      // in the last certificate
	Serials []string            `json:"serials"` // of the certificates, in the order in which they were read
	Error   string              `json:"error,omitempty"`
}

// Files returns the subcommand of an application that has its identity from files. It reads them again and again, as one
// set, and each set must be a certificate with its key that the roots verify.
func Files() *cobra.Command {
	var duration time.Duration
	var rotations int
	cmd := &cobra.Command{Use: "files DIRECTORY", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		out := FilesResult{Files: map[string]FileView{}}
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt", "bundle.json"} {
			out.Files[name] = look(filepath.Join(args[0], name))
		}
		if err := out.follow(cmd.Context(), args[0], duration, rotations); err != nil {
			out.Error = err.Error()
		}
		return json.NewEncoder(os.Stdout).Encode(out)
	}}
	cmd.Flags().DurationVar(&duration, "duration", requestTimeout, "how long at most")
	cmd.Flags().IntVar(&rotations, "rotations", 0, "end when there were so many other certificates")
	return cmd
}

func look(path string) FileView {
	info, err := os.Stat(path)
	if err != nil {
		return FileView{Error: err.Error()}
	}
	owner := info.Sys().(*syscall.Stat_t)
	view := FileView{Mode: info.Mode().String(), UID: owner.Uid, GID: owner.Gid}
	if _, err := os.ReadFile(path); err != nil {
		view.Error = err.Error()
	}
	return view
}

func (r *FilesResult) follow(ctx context.Context, dir string, duration time.Duration, rotations int) error {
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := r.read(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the set was replaced and removed while it was read
			return err
		}
		if len(r.Serials) > rotations {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d certificates in %s: %w", len(r.Serials), duration, err)
		}
	}
}

// read reads one set: what the link ..data shows at one moment.
func (r *FilesResult) read(dir string) error {
	set, err := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(filepath.Join(set, "ca.crt"))
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(set, "tls.crt"), filepath.Join(set, "tls.key")) // the key must fit
	if err != nil {
		return err
	}
	pool, intermediates := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		intermediates.AddCert(c)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	if len(pair.Leaf.URIs) != 1 {
		return fmt.Errorf("the certificate has the names %v", pair.Leaf.URIs)
	}
	r.Reads++
	r.ID = pair.Leaf.URIs[0].String()
	note(&r.Serials, pair.Leaf.SerialNumber.Text(16))
	return nil
}
