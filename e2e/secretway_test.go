package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// secretsServeProxies tries a namespace whose proxies have their certificates from the accounts' Secrets.
func secretsServeProxies(ctx context.Context, s *claims.Scene) (string, error) {
	apps := []string{"payroll", "account-auditor", "web"}
	before := map[string]string{}
	for _, app := range apps {
		var err error
		if before[app], err = servedBySecret(ctx, s, app, ""); err != nil {
			return "", err
		}
	}
	verdicts, err := claims.OnlyTheAuditorMayRead(ctx, s)
	if err != nil {
		return "", err
	}
	requests, err := during(ctx, s, 8*time.Second, func(ctx context.Context) error {
		for _, app := range apps {
			if _, err := servedBySecret(ctx, s, app, before[app]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s; each proxy shows its Secret's certificate and no other; each was replaced during %d requests, 0 failed", verdicts, requests), nil
}

// servedBySecret waits until the proxy of an app shows the certificate of its account's Secret, another than the old one,
// and returns its serial number. Kubelet takes its time to bring a changed Secret into the pod.
func servedBySecret(ctx context.Context, s *claims.Scene, app, old string) (string, error) {
	var serial string
	return serial, lab.PollFor(ctx, 90*time.Second, func(ctx context.Context) error {
		var err error
		if serial, err = secretSerial(ctx, s, app); err != nil {
			return err
		}
		if serial == old {
			return fmt.Errorf("the Secret of %s still has the certificate %s", app, serial)
		}
		return proxyShowsOnly(ctx, s, app, serial)
	})
}

func secretSerial(ctx context.Context, s *claims.Scene, account string) (string, error) {
	secret, err := s.CoreV1().Secrets(s.Namespace).Get(ctx, mesh.SecretPrefix+account, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(secret.Data[mesh.CertChainKey])
	if block == nil {
		return "", fmt.Errorf("Secret of %s holds no certificate", account)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return leaf.SerialNumber.Text(16), nil
}

// proxyShowsOnly is an error if the proxy of an app has another certificate, such as one that its agent holds.
func proxyShowsOnly(ctx context.Context, s *claims.Scene, app, serial string) error {
	certs, err := lab.ExecJSON[[]sample.ProxyCert](ctx, s.Lab, s.Namespace, app, s.Container(app), "sample", "certs")
	if err != nil {
		return err
	}
	if len(certs) == 0 {
		return errors.New("the proxy of " + app + " has no certificate")
	}
	for _, c := range certs {
		n, ok := new(big.Int).SetString(c.Serial, 16)
		if !ok || n.Text(16) != serial {
			return fmt.Errorf("the proxy of %s shows %+v, its Secret has %s", app, c, serial)
		}
	}
	return nil
}
