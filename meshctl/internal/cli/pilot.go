package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
)

// held are removals of one kind that a Pilot does not believe, as its operator API shows them.
type held struct {
	Pilot string   `json:"pilot"`
	Kind  string   `json:"kind"`
	Count int      `json:"count"`
	Some  []string `json:"some"`
}

func (a *app) pilot() *cobra.Command {
	cmd := group("pilot", "See what Pilot holds back, and let it through")
	var output string
	show := &cobra.Command{
		Use: "held", Short: "Show the removals that Pilot holds back", Args: cobra.NoArgs,
		Long: "When the API server lists less than half of what there was, Pilot keeps what it has, as the server may be a restored one.\n" +
			"The removals are forgotten when the objects are listed again; if they are gone for good, meshctl pilot confirm lets them through.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			all, err := heldRemovals(cmd.Context(), client)
			if err != nil {
				return err
			}
			return a.out.Value(output, all, func(out *printer.Printer) { showHeld(out, all) })
		},
	}
	outputFlag(show, &output)
	confirm := &cobra.Command{
		Use: "confirm", Short: "Let the held removals through: the objects are gone for good", Args: cobra.NoArgs,
		Example: "  meshctl pilot held\n  meshctl pilot confirm",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.confirmHeld(cmd.Context()) },
	}
	cmd.AddCommand(show, confirm)
	return cmd
}

func showHeld(out *printer.Printer, all []held) {
	if len(all) == 0 {
		out.Line("Pilot holds nothing back.")
		return
	}
	t := out.Table("PILOT", "KIND", "REMOVALS", "OF")
	defer t.Flush()
	for _, h := range all {
		some := strings.Join(h.Some, ", ")
		if more := h.Count - len(h.Some); more > 0 {
			some += fmt.Sprintf(", and %d more", more)
		}
		t.Row(h.Pilot, h.Kind, fmt.Sprint(h.Count), some)
	}
}

// eachPilot calls f with a way to every Pilot: each watches the API server for itself.
func eachPilot(ctx context.Context, client *kube.Client, f func(pod string, conn *operator.Connection) error) error {
	pods, err := operator.Pods(ctx, client, "pilot")
	if err != nil {
		return err
	}
	access, err := operator.Open(ctx, client)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		conn, err := access.Connect(ctx, &pod)
		if err != nil {
			return err
		}
		err = f(pod.Name, conn)
		conn.Close()
		if err != nil {
			return fmt.Errorf("asking pod %s: %w", pod.Name, err)
		}
	}
	return nil
}

func heldRemovals(ctx context.Context, client *kube.Client) ([]held, error) {
	all := []held{}
	err := eachPilot(ctx, client, func(pod string, conn *operator.Connection) error {
		var these []held
		if err := conn.GetJSON(ctx, "/v1/held", &these); err != nil {
			return err
		}
		for _, h := range these {
			h.Pilot = pod
			all = append(all, h)
		}
		return nil
	})
	return all, err
}

func (a *app) confirmHeld(ctx context.Context) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	by, total := whoAmI(ctx, client), 0
	err = eachPilot(ctx, client, func(pod string, conn *operator.Connection) error {
		var these []held
		if err := conn.GetJSON(ctx, "/v1/held", &these); err != nil || len(these) == 0 {
			return err
		}
		seen := 0
		for _, h := range these {
			seen += h.Count
		}
		if err := conn.PostJSON(ctx, "/v1/held/confirm", map[string]any{"seen": seen, "by": by}, nil); err != nil {
			return err
		}
		total += seen
		a.out.Line("%s: %d removals are let through", pod, seen)
		return nil
	})
	if err == nil && total == 0 {
		err = errors.New("Pilot holds nothing back")
	}
	return err
}
