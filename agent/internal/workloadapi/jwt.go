package workloadapi

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// What one call may hold.
const (
	maxAudiences = 16
	maxAudience  = 1024     // bytes
	maxJWT       = 64 << 10 // bytes
)

// FetchJWTSVID implements SpiffeWorkloadAPI.
func (s *server) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	if err := checkAudience(req.GetAudience()); err != nil {
		return nil, err
	}
	own := s.pod.ID.String()
	if id := req.GetSpiffeId(); id != "" && id != own {
		return nil, status.Errorf(codes.PermissionDenied, "this workload is %s, not %q", own, id)
	}
	token, err := s.tokens.get(ctx, req.GetAudience())
	if err != nil {
		return nil, err
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: own, Svid: token}}}, nil
}

func checkAudience(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return status.Errorf(codes.InvalidArgument, "a JWT-SVID needs an audience, and has at most %d", maxAudiences)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience {
			return status.Errorf(codes.InvalidArgument, "an audience is empty or longer than %d bytes", maxAudience)
		}
	}
	return nil
}

// FetchJWTBundles implements SpiffeWorkloadAPI. A bundle without keys is waited for: to clients it would be damaged.
func (s *server) FetchJWTBundles(_ *workload.JWTBundlesRequest, rpc workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	if err := checkHeader(rpc.Context()); err != nil {
		return err
	}
	var sent *jwtbundle.Bundle
	return s.follow(rpc.Context(), func(t *svid.Trust) (bool, error) {
		if sent == nil && t.JWT.Empty() {
			return false, nil
		}
		if t.JWT.Equal(sent) {
			return true, nil
		}
		keys, err := t.JWT.Marshal()
		if err != nil {
			return false, status.Error(codes.Internal, "encoding the keys of the trust domain failed")
		}
		sent = t.JWT
		return true, rpc.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{t.JWT.TrustDomain().IDString(): keys}})
	})
}

// ValidateJWTSVID implements SpiffeWorkloadAPI. It asks nobody: the keys are in the trust bundle.
func (s *server) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	if err := checkAudience([]string{req.GetAudience()}); err != nil {
		return nil, err
	}
	if n := len(req.GetSvid()); n == 0 || n > maxJWT {
		return nil, status.Errorf(codes.InvalidArgument, "the JWT-SVID is missing or longer than %d bytes", maxJWT)
	}
	got, err := jwtsvid.ParseAndValidate(req.GetSvid(), s.bundle, []string{req.GetAudience()})
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the JWT-SVID is not valid: %v", err)
	}
	claims, err := structpb.NewStruct(got.Claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "claims of the JWT-SVID: %v", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: got.ID.String(), Claims: claims}, nil
}
