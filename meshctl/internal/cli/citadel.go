package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/meshctl/internal/operator"
)

// toCitadel opens a way to the first replica of Citadel that can be reached and suits; nil suits with every one. Close it.
func toCitadel(ctx context.Context, client *kube.Client, suits func(*operator.Connection) error) (*operator.Connection, error) {
	pods, err := operator.Pods(ctx, client, "citadel")
	if err != nil {
		return nil, err
	}
	access, err := operator.Open(ctx, client)
	if err != nil {
		return nil, err
	}
	var troubles []error
	for _, pod := range pods {
		conn, err := access.Connect(ctx, &pod)
		if err == nil && suits != nil {
			if err = suits(conn); err != nil {
				conn.Close()
				err = fmt.Errorf("pod %s: %w", pod.Name, err)
			}
		}
		if err == nil {
			return conn, nil
		}
		troubles = append(troubles, err)
	}
	return nil, errors.Join(troubles...)
}

// toLeader opens a way to the Citadel that leads, and returns what it says of the CA. Close it.
func toLeader(ctx context.Context, client *kube.Client) (*operator.Connection, caStatus, error) {
	var now caStatus
	conn, err := toCitadel(ctx, client, func(conn *operator.Connection) error {
		now = caStatus{}
		if err := conn.GetJSON(ctx, "/v1/ca", &now); err != nil {
			return err
		}
		if !now.Leading {
			return errors.New("it does not lead")
		}
		return nil
	})
	if err != nil {
		return nil, caStatus{}, fmt.Errorf("no replica of Citadel leads at the moment; one will within five seconds: %w", err)
	}
	return conn, now, nil
}

// leaderStatus is what the Citadel that leads says of the CA.
func leaderStatus(ctx context.Context, client *kube.Client) (caStatus, error) {
	conn, now, err := toLeader(ctx, client)
	if err == nil {
		conn.Close()
	}
	return now, err
}
