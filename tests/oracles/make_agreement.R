# Writes agreement_r.json: estimates by R's nlme, gstat and fields for the meuse, jura and sic97 data.
#
#   Rscript tests/oracles/make_agreement.R tests/oracles/agreement_r.json
#
# nlme 3.1 (Pinheiro & Bates 2000): gls with an exponential correlation and a nugget, maximum likelihood and REML;
# gstat 2.1-0 (Pebesma 2004): sample variograms, their weighted least-squares fits, kriging; fields (Nychka et al.):
# Matern with smoothness 3/2 and a linear drift. Coordinates are in metres for meuse, kilometres for jura and sic97.
library(sp); library(gstat); library(nlme); library(fields)
options(digits = 15)
out <- commandArgs(trailingOnly = TRUE)[1]
number <- function(x) if (length(x) == 1) sprintf("%.12g", x) else paste0("[", paste(sprintf("%.12g", x), collapse = ", "), "]")
json <- function(x, indent = "") {
  if (is.list(x)) {
    deeper <- paste0(indent, "  ")
    items <- mapply(function(name, value) paste0(deeper, "\"", name, "\": ", json(value, deeper)), names(x), x)
    paste0("{\n", paste(items, collapse = ",\n"), "\n", indent, "}")
  } else if (is.character(x)) paste0("\"", x, "\"") else number(x)
}

data(meuse, package = "sp"); data(jura, package = "gstat"); data(sic97, package = "gstat")
m <- data.frame(x = meuse$x, y = meuse$y, z = log(meuse$zinc), root = sqrt(meuse$dist))
j <- data.frame(x = prediction.dat$Xloc, y = prediction.dat$Yloc, z = prediction.dat$Co)
s <- data.frame(x = coordinates(sic_obs)[, 1] / 1000, y = coordinates(sic_obs)[, 2] / 1000, z = sqrt(sic_obs$rainfall))

# the likelihood itself, written out: the log of the density of z, or of its contrasts free of the mean with
# nlme's constant (no log det X'X)
value <- function(frame, X, partial, length, nugget, restricted) {
  V <- partial * exp(-as.matrix(dist(frame[c("x", "y")])) / length) + diag(nugget, nrow(frame))
  R <- chol(V); y <- backsolve(R, frame$z, transpose = TRUE); A <- backsolve(R, X, transpose = TRUE)
  q <- qr(A); r <- qr.resid(q, y); n <- nrow(frame); p <- ncol(X)
  v <- -0.5 * sum(r^2) - sum(log(diag(R))) - 0.5 * n * log(2 * pi)
  if (restricted) v <- v + 0.5 * p * log(2 * pi) - sum(log(abs(diag(qr.R(q)))))
  v
}
gls_fit <- function(frame, formula, method, range, share) {
  f <- gls(formula, frame, correlation = corExp(c(range, share), form = ~ x + y, nugget = TRUE), method = method)
  structure <- coef(f$modelStruct$corStruct, unconstrained = FALSE)
  X <- model.matrix(formula, frame)
  # nlme stops early at times: go on from its answer, to the maximum
  aim <- function(t) -value(frame, X, exp(t[1]), exp(t[2]), exp(t[3]), method == "REML")
  s2 <- f$sigma^2
  start <- log(c(s2 * (1 - structure[2]), structure[1], s2 * structure[2]))
  best <- optim(start, aim, method = "BFGS", control = list(reltol = 1e-15, maxit = 500))
  best <- optim(best$par, aim, control = list(reltol = 1e-15, maxit = 2000))
  best <- optim(best$par, aim, method = "BFGS", control = list(reltol = 1e-15, maxit = 500))
  stopifnot(abs(best$value + as.numeric(logLik(f))) < 0.01)
  t <- exp(best$par)
  at_zero <- t[3] < 1e-6 * t[1]  # a nugget estimated as none: the others' errors are those with it held
  information <- optimHess(best$par, aim)
  errors <- if (at_zero) c(sqrt(diag(solve(information[1:2, 1:2]))), 0) else sqrt(diag(solve(information)))
  V <- t[1] * exp(-as.matrix(dist(frame[c("x", "y")])) / t[2]) + diag(t[3], nrow(frame))
  W <- solve(t(X) %*% solve(V, X))
  beta <- as.numeric(W %*% t(X) %*% solve(V, frame$z))
  list(nlme_log_likelihood = as.numeric(logLik(f)), log_likelihood = -best$value,
       variance = t[1], lengthscale = t[2], nugget = if (at_zero) 0 else t[3], relative_errors = errors,
       coefficients = beta, coefficient_errors = sqrt(diag(W)), log_det_xx = as.numeric(determinant(t(X) %*% X)$modulus))
}

variograms <- function(frame, cutoff, width, model) {
  coordinates(frame) <- ~ x + y
  if (is.na(cutoff)) {  # gstat's own: a third of the diagonal, 15 classes
    box <- bbox(frame); cutoff <- sqrt(sum((box[, 2] - box[, 1])^2)) / 3; width <- cutoff / 15
  }
  v <- variogram(z ~ 1, frame, cutoff = cutoff, width = width)
  r <- variogram(z ~ 1, frame, cutoff = cutoff, width = width, cressie = TRUE)
  f <- fit.variogram(v, model)
  g <- fit.variogram(v, model, fit.method = 2)
  k <- krige.cv(z ~ 1, frame, f, verbose = FALSE)
  parts <- function(f) list(nugget = f$psill[1], variance = f$psill[2], lengthscale = f$range[2])
  list(cutoff = cutoff, width = width, counts = v$np, lags = v$dist, gamma = v$gamma, cressie_hawkins = r$gamma,
       fitted_by_counts_over_squared_lag = parts(f), sse = attr(f, "SSErr"), fitted_by_cressie_weights = parts(g),
       leave_one_out_rmse = sqrt(mean(k$residual^2)), leave_one_out_zscore_variance = mean(k$zscore^2))
}

linear <- function(frame) {  # fields: linear drift, Matern 3/2; its length enters as r / aRange, without sqrt(2 nu)
  f <- suppressWarnings(spatialProcess(as.matrix(frame[c("x", "y")]), frame$z, cov.params.start = NULL, smoothness = 1.5,
                      mKrig.args = list(m = 2)))
  p <- f$summary
  list(variance = as.numeric(p["sigma2"]), lengthscale = as.numeric(p["aRange"]) * sqrt(3), nugget = as.numeric(p["tau"])^2,
       log_likelihood = as.numeric(p["lnProfileLike.FULL"]), restricted_log_likelihood = as.numeric(p["lnProfileREML.FULL"]))
}

meuse_grid <- function() {
  data(meuse.grid, package = "sp", envir = environment())
  frame <- m; coordinates(frame) <- ~ x + y; grid <- meuse.grid; coordinates(grid) <- ~ x + y
  model <- vgm(0.59060463, "Sph", 897.0044, 0.05066017)
  k <- krige(z ~ 1, frame, grid, model, debug.level = 0)
  u <- krige(z ~ sqrt(dist), local({ f <- m; f$dist <- m$root^2; coordinates(f) <- ~ x + y; f }), grid,
             vgm(0.1507, "Exp", 340.3, 0.0571), debug.level = 0)
  rows <- c(1, 500, 1000, 1500, 2000, 2500, 3103)
  list(model = "ordinary: spherical 0.59060463, 897.0044, nugget 0.05066017; external drift sqrt(dist): exponential 0.1507, 340.3, nugget 0.0571",
       rows = rows, x = meuse.grid$x[rows], y = meuse.grid$y[rows], ordinary = k$var1.pred[rows], ordinary_variance = k$var1.var[rows],
       ordinary_mean_of_all = mean(k$var1.pred), drift = u$var1.pred[rows], drift_variance = u$var1.var[rows])
}

result <- list(
  source = paste0("Written by make_agreement.R with R ", getRversion(), ", nlme ", packageVersion("nlme"), ", gstat ", packageVersion("gstat"),
                  ", fields ", packageVersion("fields"), "; z: log zinc (meuse), cobalt of the prediction set (jura), square root of rainfall at the ",
                  "100 gauges (sic97); nlme_log_likelihood is what gls reports, log_likelihood the maximum found from there"),
  meuse = list(ml = gls_fit(m, z ~ 1, "ML", 400, 0.1),
               drift_ml = gls_fit(m, z ~ root, "ML", 200, 0.2), drift_reml = gls_fit(m, z ~ root, "REML", 200, 0.2),
               variogram = variograms(m, NA, NA, vgm(1, "Sph", 900, 1)), linear_matern32 = linear(m), grid = meuse_grid()),
  jura = list(ml = gls_fit(j, z ~ 1, "ML", 0.5, 0.1), reml = gls_fit(j, z ~ 1, "REML", 0.5, 0.1),
              variogram = variograms(j, 2, 0.125, vgm(10, "Sph", 1.3, 1)), linear_matern32 = linear(j)),
  sic97 = list(ml = gls_fit(s, z ~ 1, "ML", 50, 0.05), reml = gls_fit(s, z ~ 1, "REML", 50, 0.05),
               variogram = variograms(s, 110, 10, vgm(25, "Sph", 80, 1)), linear_matern32 = linear(s)))
writeLines(json(result), out)
