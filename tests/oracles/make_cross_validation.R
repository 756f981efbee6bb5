# Writes tests/oracles/cross_validation.json: gstat's cross-validation of log(zinc) at the meuse sites.
#
#   Rscript tests/oracles/make_cross_validation.R tests/oracles/cross_validation.json
#
# Needs r-cran-sp and r-cran-gstat; the file was written with sp 1.6 and gstat 2.1-0. The variogram is given, not
# fitted: nugget 0.05, exponential with partial sill 0.6 and range parameter 300 m. Each case holds the prediction,
# its variance, the residual and the z score of every site: ordinary kriging with each site left out, the same with
# ten given folds, and universal kriging with the square root of the distance to the river, as gstat's manual has it.
library(sp)
library(gstat)
data(meuse, package = "sp")
coordinates(meuse) <- ~ x + y
model <- vgm(0.6, "Exp", 300, 0.05)
folds <- (seq_len(nrow(meuse)) * 7) %% 10
run <- function(formula, nfold) {
  found <- krige.cv(formula, meuse, model, nfold = nfold, verbose = FALSE)
  list(prediction = found$var1.pred, variance = found$var1.var, residual = found$residual, zscore = found$zscore)
}
cases <- list(
  ordinary = run(log(zinc) ~ 1, nrow(meuse)),
  folds = run(log(zinc) ~ 1, folds + 1),
  universal = run(log(zinc) ~ sqrt(dist), nrow(meuse))
)
numbers <- function(x) paste0("[", paste(formatC(x, digits = 15, format = "g", width = 1), collapse = ", "), "]")
entry <- function(name, values) paste0('    "', name, '": ', numbers(values))
case <- function(name) {
  lines <- mapply(entry, names(cases[[name]]), cases[[name]])
  paste0('  "', name, '": {\n', paste(lines, collapse = ",\n"), "\n  }")
}
at <- coordinates(meuse)
header <- paste0(
  '  "source": "R ', getRversion(), ", gstat ", packageVersion("gstat"), ", sp ", packageVersion("sp"),
  '; tests/oracles/make_cross_validation.R",\n',
  '  "nugget": 0.05, "variance": 0.6, "lengthscale": 300.0,\n',
  '  "x": ', numbers(at[, 1]), ",\n", '  "y": ', numbers(at[, 2]), ",\n",
  '  "zinc": ', numbers(meuse$zinc), ",\n", '  "dist": ', numbers(meuse$dist), ",\n",
  '  "labels": ', numbers(folds), ",\n"
)
text <- paste0("{\n", header, paste(sapply(names(cases), case), collapse = ",\n"), "\n}\n")
cat(text, file = commandArgs(trailingOnly = TRUE)[1])
