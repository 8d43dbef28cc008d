"""Linear Gaussian models written out as one dense Gaussian, in float64 by SciPy."""

import numpy as np
import scipy.linalg
import scipy.stats


FLOWS = {}


class Dense:
    """`dX = (A X + b) dt + sigma dW` at all times at once; `X(t0) ~ N(mean, P0)`."""

    def __init__(self, matrix, bias, diffusion, mean, covariance, t0=0.0):
        self.matrix, self.bias = np.asarray(matrix), np.asarray(bias)
        self.noise = np.asarray(diffusion) @ np.asarray(diffusion).T
        self.mean, self.covariance, self.t0 = np.asarray(mean), covariance, t0

    def flow(self, dt):
        """`Phi`, `int Phi b` and the covariance of a gap, computed once."""
        given = self.matrix, self.bias, self.noise, np.float64(dt)
        key = tuple(array.tobytes() for array in given)
        if key not in FLOWS:
            FLOWS[key] = self._flow(dt)
        return FLOWS[key]

    def _flow(self, dt):
        """By one exponential each."""
        size = len(self.mean)
        if dt == 0:
            return np.eye(size), np.zeros(size), np.zeros((size, size))
        # Van Loan's exponential holds the inverse of `Phi`: short pieces of a long gap.
        pieces = int(np.ceil(np.abs(self.matrix).sum(0).max() * dt / 2)) or 1
        phi, offset, noise = np.eye(size), np.zeros(size), np.zeros((size, size))
        one = self._piece(dt / pieces)
        for _ in range(pieces):
            phi, offset = one[0] @ phi, one[0] @ offset + one[1]
            noise = one[0] @ noise @ one[0].T + one[2]
        return phi, offset, noise

    def _piece(self, dt):
        size = len(self.mean)
        affine = np.zeros((size + 1, size + 1))
        affine[:size, :size], affine[:size, size] = self.matrix, self.bias
        whole = scipy.linalg.expm(affine * dt)
        phi, offset = whole[:size, :size], whole[:size, size]
        loan = np.block(
            [[self.matrix, self.noise], [np.zeros((size, size)), -self.matrix.T]]
        )
        return phi, offset, scipy.linalg.expm(loan * dt)[:size, size:] @ phi.T

    def joint(self, ts):
        """Mean and covariance of the stacked states."""
        size, num = len(self.mean), len(ts)
        means, blocks = [], []
        for t in ts:
            phi, offset, noise = self.flow(t - self.t0)
            means.append(phi @ self.mean + offset)
            blocks.append(phi @ self.covariance @ phi.T + noise)
        whole = np.zeros((num, size, num, size))
        for i in range(num):
            for j in range(i, num):
                cross = blocks[i] @ self.flow(ts[j] - ts[i])[0].T
                whole[i, :, j], whole[j, :, i] = cross, cross.T
        return np.concatenate(means), whole.reshape(num * size, num * size)

    def observed(self, ts, ys, observe, noise, mask):
        """Mean and covariance of what is observed, and its values."""
        mean, covariance = self.joint(ts)
        rows = scipy.linalg.block_diag(*[observe] * len(ts))[mask.ravel()]
        noises = scipy.linalg.block_diag(*[noise] * len(ts))[
            np.ix_(mask.ravel(), mask.ravel())
        ]
        return rows, mean, covariance, rows @ covariance @ rows.T + noises, ys[mask]

    def log_prob(self, ts, ys, observe, noise, mask):
        """`log p(y)` of the entries where `mask` is true."""
        rows, mean, _, covariance, values = self.observed(ts, ys, observe, noise, mask)
        return scipy.stats.multivariate_normal(rows @ mean, covariance).logpdf(values)

    def posterior(self, ts, ys, observe, noise, mask):
        """Mean and covariance of the states at `ts`."""
        rows, mean, prior, covariance, values = self.observed(
            ts, ys, observe, noise, mask
        )
        gain = np.linalg.solve(covariance, rows @ prior).T
        size = len(self.mean)
        found = (mean + gain @ (values - rows @ mean)).reshape(-1, size)
        left = (prior - gain @ rows @ prior).reshape(len(ts), size, len(ts), size)
        return found, np.stack([left[i, :, i] for i in range(len(ts))])


def kalman(dense, ts, ys, observe, noise, mask):
    """`log p(y)` by a Kalman filter, one observation after the other."""
    mean, covariance, t, total = dense.mean, dense.covariance, dense.t0, 0.0
    for time, y, there in zip(ts, ys, mask, strict=True):
        phi, offset, spread = dense.flow(time - t)
        mean, covariance, t = (
            phi @ mean + offset,
            phi @ covariance @ phi.T + spread,
            time,
        )
        rows = observe[there]
        if not len(rows):
            continue
        total_noise = rows @ covariance @ rows.T + noise[np.ix_(there, there)]
        error = y[there] - rows @ mean
        total += scipy.stats.multivariate_normal(cov=total_noise).logpdf(error)
        gain = np.linalg.solve(total_noise, rows @ covariance).T
        mean = mean + gain @ error
        covariance = covariance - gain @ rows @ covariance
    return total
