# SPDX-License-Identifier: Apache-2.0
"""What Go's templates are made of, as far as Docker's --format needs it: values, functions, expressions."""
