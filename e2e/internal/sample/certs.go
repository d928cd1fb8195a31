package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// ProxyCert is a certificate that the pod's proxy shows to its peers.
type ProxyCert struct {
	Serial  string    `json:"serial"` // hexadecimal, with two digits a byte
	Expires time.Time `json:"expires"`
	Seen    time.Time `json:"seen"` // when it was first met
}

// Certs returns the subcommand that follows which certificates the pod's proxy shows, and prints each. It asks the proxy
// itself, and needs neither the API server nor the agent for that.
func Certs() *cobra.Command {
	var duration time.Duration
	var rotations int
	cmd := &cobra.Command{Use: "certs", RunE: func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), duration)
		defer cancel()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		var all []ProxyCert
		for {
			now, err := proxyCerts(cmd.Context())
			if err != nil {
				return err
			}
			for _, c := range now {
				if !slices.ContainsFunc(all, func(known ProxyCert) bool { return known.Serial == c.Serial }) {
					fmt.Fprintln(os.Stderr, "certificate", c.Serial)
					all = append(all, c)
				}
			}
			if len(all) > rotations {
				break
			}
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
			}
			break
		}
		return json.NewEncoder(os.Stdout).Encode(all)
	}}
	cmd.Flags().DurationVar(&duration, "duration", requestTimeout, "how long at most")
	cmd.Flags().IntVar(&rotations, "rotations", 0, "end when there were so many other certificates")
	return cmd
}

// proxyCerts reads the certificates from the proxy's admin interface.
func proxyCerts(ctx context.Context) ([]ProxyCert, error) {
	got := do(ctx, client(false, false), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/certs", mesh.ProxyAdminPort))
	if got.Status != http.StatusOK {
		return nil, fmt.Errorf("the proxy's certificates: %d %s", got.Status, got.Error)
	}
	var dump struct {
		Certificates []struct {
			Chain []struct {
				Serial  string    `json:"serial_number"`
				Expires time.Time `json:"expiration_time"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal([]byte(got.Body), &dump); err != nil {
		return nil, fmt.Errorf("the proxy's certificates: %w", err)
	}
	var out []ProxyCert
	for _, c := range dump.Certificates {
		if len(c.Chain) > 0 {
			out = append(out, ProxyCert{c.Chain[0].Serial, c.Chain[0].Expires, time.Now()})
		}
	}
	return out, nil
}
